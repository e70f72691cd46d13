"""Alerts: real receivers on this machine, secrets that stay secret, failures that stop nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ssl_core import alerts, registry
from ssl_core.artifacts import append_line, read_lines, write_json
from ssl_core.config import Config, Paths
from ssl_core.stages import alert

SECRET = "T0PSECRET"


class Receiver:
    """A webhook that answers with the given codes, then 200."""

    def __init__(self, codes: list[int]) -> None:
        self.codes, self.got = codes, []  # type: list[int], list[tuple[str, dict, dict]]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, dict(self.headers), json.loads(body)))
                code = outer.codes.pop(0) if outer.codes else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"{outer.url}/stolen")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def receiving(*codes: int) -> Iterator[Receiver]:
    found = Receiver(list(codes))
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()


async def _smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mails: list) -> None:
    """As much of RFC 5321 as one message needs."""

    async def say(text: str) -> None:
        writer.write(f"{text}\r\n".encode())
        await writer.drain()

    await say("220 here")
    envelope: list[str] = []
    while line := (await reader.readline()).decode().strip():
        verb = line[:4].upper()
        envelope.append(line)
        if verb == "DATA":
            await say("354 go on")
            text = (await reader.readuntil(b"\r\n.\r\n")).decode()
            mails.append((list(envelope), text))
        if verb == "QUIT":
            break
        await say("250 ok")
    writer.close()


@contextmanager
def mailing() -> Iterator[tuple[int, list]]:
    """A mail server in a thread of its own."""
    loop, mails, ready = asyncio.new_event_loop(), [], threading.Event()  # type: Any, list, Any
    port = [0]

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: _smtp(r, w, mails), "127.0.0.1", 0)
        port[0] = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            while ready.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield port[0], mails
    finally:
        ready.clear()
        thread.join()
        loop.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A project in which one day did harm and one promotion happened."""
    found = Paths(tmp_path)
    verdict = {"date": "2025-01-06", "model": "m", "verdict": "harm", "reason": "It is worse."}
    write_json(found.monitor / "date=2025-01-06/verdict.json", verdict)
    write_json(
        found.monitor / "date=2025-01-05/verdict.json",
        verdict | {"date": "2025-01-05", "verdict": "ok"},
    )
    registry.record(found.registry, "promote", "a" * 12, {"previous": None, "reason": "First."})
    return found


def config(*addresses: str) -> Config:
    return Config.model_validate({"deploy": {"alerts": list(addresses)}})


# ---- one message -------------------------------------------------------------------------------


def test_a_webhook_gets_text_and_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_WEBHOOK_TOKEN", SECRET)
    with receiving() as hook:
        assert alerts.send(f"{hook.url}/in", "Harm", "It is worse.", {"key": "k"}) is None
    [(path, headers, body)] = hook.got
    assert path == "/in"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body == {"text": "Harm\nIt is worse.", "event": {"key": "k"}}


@pytest.mark.parametrize(
    ("codes", "calls", "error"),
    [
        ((503, 429), 3, None),
        ((500,) * 5, 3, "HTTPError 500, 3 times"),
        ((403,), 1, "HTTPError 403"),
    ],
)
def test_what_may_pass_is_tried_again(codes: tuple[int, ...], calls: int, error: str) -> None:
    with receiving(*codes) as hook:
        assert alerts.send(hook.url, "s", "t", {}) == error
    assert len(hook.got) == calls


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_WEBHOOK_TOKEN", SECRET)
    with receiving(302) as hook:
        assert alerts.send(f"{hook.url}/in", "s", "t", {}) == "HTTPError 302"
    assert [path for path, _, _ in hook.got] == ["/in"]


def test_mail_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    with mailing() as (port, mails):
        monkeypatch.setenv("HEADWATER_SMTP", f"127.0.0.1:{port}")
        monkeypatch.setenv("HEADWATER_SMTP_FROM", "watch@example.org")
        assert alerts.send("mailto:ada@example.org", "Harm\nX", "Grün ist schlechter.", {}) is None
    [(envelope, text)] = mails
    assert any("watch@example.org" in line for line in envelope)
    assert any("to:<ada@example.org>" in line.lower() for line in envelope)
    assert "Subject: Harm X" in text


def test_a_password_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    with mailing() as (port, mails):
        monkeypatch.setenv("HEADWATER_SMTP", f"127.0.0.1:{port}")
        monkeypatch.setenv("HEADWATER_SMTP_USER", "ada")
        monkeypatch.setenv("HEADWATER_SMTP_PASSWORD", SECRET)
        error = alerts.send("mailto:ada@example.org", "s", "t", {})
    assert "no TLS" in str(error)
    assert not mails


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("env:NOT_SET", "NOT_SET is not set"),
        ("file:///etc/passwd", "deploy.alerts takes"),
        ("mailto:a@b", "HEADWATER_SMTP is not set"),
        ("http://127.0.0.1:1/x", "URLError"),
        ("http://[bad", "ValueError"),
    ],
)
def test_failures_are_answers(address: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWATER_SMTP", raising=False)
    assert why in str(alerts.send(address, "s", "t", {}))


# ---- the stage ---------------------------------------------------------------------------------


def test_each_event_is_told_once(paths: Paths) -> None:
    with receiving() as hook:
        cfg = config(f"{hook.url}/a", f"{hook.url}/b")
        assert alert.run(cfg, paths) == {"sent": 4, "failed": 0, "old": 0}
        assert alert.run(cfg, paths) == {"sent": 0, "failed": 0, "old": 0}
        registry.record(paths.registry, "rollback", "b" * 12, {"previous": "a", "reason": "Worse."})
        append_line(
            paths.repair / "log.jsonl",
            {"key": "k", "outcome": "approval", "candidate": "c", "reason": "r", "time": "2025"},
        )
        assert alert.run(cfg, paths)["sent"] == 4
    titles = [body["event"]["title"] for path, _, body in hook.got if path == "/a"]
    assert titles == [
        "harm on 2025-01-06",
        f"{'a' * 12} is champion now",
        f"rolled back to {'b' * 12}",
        "a repair waits for approval: headwater approve c",
    ]


def test_a_receiver_that_was_down_is_told_later(paths: Paths) -> None:
    with receiving(*[500] * 3) as hook:
        cfg = config(hook.url)
        assert alert.run(cfg, paths) == {"sent": 0, "failed": 1, "old": 0}  # the rest waits
        assert alert.run(cfg, paths)["sent"] == 2


def test_secrets_are_in_no_file(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWATER_WEBHOOK_TOKEN", SECRET)
    with receiving(403, 200) as hook:
        monkeypatch.setenv("HOOK", f"{hook.url}/{SECRET}")
        alert.run(
            config("env:HOOK", f"{hook.url}/{SECRET}2", f"http://u:{SECRET}@127.0.0.1:1/"), paths
        )
    files = [f for f in paths.root.rglob("*") if f.is_file()]
    assert files
    assert all(SECRET not in f.read_text() for f in files)
    assert SECRET not in "".join(capfd.readouterr())
    assert any(line["error"] for line in read_lines(paths.deploy / "alerts.jsonl"))


def test_a_long_past_is_not_told_anew(paths: Paths) -> None:
    for i in range(10):
        registry.record(paths.registry, "reject", f"{i:012d}", {"reason": "x"})
    with receiving() as hook:
        found = alert.run(config(hook.url), paths)
        assert found == {"sent": alert.FIRST, "failed": 0, "old": 9}
        assert alert.run(config(hook.url), paths)["sent"] == 0
