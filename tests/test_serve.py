"""A real server process: its answers are `headwater predict`'s, and nothing sent in ends it."""

from __future__ import annotations

import io
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_promote import CFG, CLASSES, build, samples, write_encoder

from ssl_core import registry
from ssl_core.artifacts import write_json
from ssl_core.config import Paths
from ssl_core.stages import embed, evaluate, predict, promote
from ssl_core.stages._entry import files

DAY = "2026-03-01"
SOURCES = {"a": CLASSES[:3]}
LIMITS = ("--max-images", "4", "--max-mib", "0.5", "--max-pixels", "250000", "--timeout", "5")


class Server:
    """`headwater serve` in a process of its own."""

    def __init__(self, root: Path, *options: str) -> None:
        words = [sys.executable, "-u", "-m", "ssl_core", "serve", "--port", "0", *options]
        self.lines: list[str] = []
        self.process = subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True)
        self.url, started = "", threading.Event()

        def read() -> None:
            assert self.process.stderr
            for line in self.process.stderr:
                self.lines.append(line)
                if found := re.search(r"running on (http://\S+)", line):
                    self.url = found[1]
                    started.set()
            started.set()

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()
        started.wait(120)
        assert self.url, "".join(self.lines)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.reader.join(10)
        assert self.process.stderr
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project with a champion and one day of images that it named already."""
    found = Paths(tmp_path_factory.mktemp("serve"))
    build(found, SOURCES, seed=0, groups=96)
    assert promote.run(CFG, found)["promoted"]
    for sample in [s for s in samples(SOURCES, 96) if s.split == "test"][:8]:
        file = found.root / CFG.deploy.incoming / DAY / f"{sample.key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sample.image)
    predict.run(CFG, found, DAY)
    return found


@pytest.fixture(scope="module")
def server(paths: Paths) -> Iterator[Server]:
    running = Server(paths.root, *LIMITS)
    yield running
    assert running.stop() == 0, "".join(running.lines)


@pytest.fixture(scope="module")
def day(paths: Paths) -> pd.DataFrame:
    """What stage predict said."""
    return pd.read_parquet(paths.predictions / f"date={DAY}" / "part-0.parquet")


def send(server: Server, data: bytes, kind: str = "image/png", path: str = "/predict") -> Any:
    return server.client.post(path, content=data, headers={"Content-Type": kind})


def png(side: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 2.5 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def error(answer: httpx.Response) -> dict[str, str]:
    found: dict[str, str] = answer.json()["error"]
    assert set(found) == {"value", "rule", "fix"}
    return found


def test_answers_are_those_of_stage_predict(
    server: Server, paths: Paths, day: pd.DataFrame
) -> None:
    assert len(day) == 8
    for row in day.itertuples(index=False):
        data = (paths.root / row.path).read_bytes()
        answer = send(server, data).json()
        assert answer["model"] == row.model
        (found,) = answer["results"]
        assert (found["sha256"], found["prediction"]) == (row.sha256, row.prediction)
        assert found["confidence"] == pytest.approx(row.confidence, abs=1e-5)
        (found,) = send(server, data, path="/embed").json()["results"]
        np.testing.assert_allclose(found["embedding"], row.embedding, atol=1e-5)


def test_multipart_keeps_order_and_says_which_image_is_bad(
    server: Server, paths: Paths, day: pd.DataFrame
) -> None:
    rows = list(day.head(2).itertuples(index=False))
    good = [(paths.root / r.path).read_bytes() for r in rows]
    parts = [("one.png", good[0]), ("cut.png", good[1][:60]), ("../../etc/passwd", good[1])]
    answer = server.client.post("/predict", files=[("file", p) for p in parts])
    assert answer.status_code == 200
    first, bad, last = answer.json()["results"]
    assert (first["prediction"], last["prediction"]) == tuple(r.prediction for r in rows)
    assert bad["name"] == "cut.png"
    assert bad["error"]["reason"] == "truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png()[:40], "truncated"),
        (b"hello", "not-an-image"),
        (bomb(), "too-many-pixels"),
        (b"\x93NUMPY\x01\x00" + b"\xff" * 40, "not-an-image"),
        (b"\x80\x04cos\nsystem\n", "not-an-image"),
    ],
    ids=["cut", "text", "bomb", "array", "pickle"],
)
def test_unfit_images_are_refused_with_a_reason(server: Server, data: bytes, reason: str) -> None:
    answer = send(server, data, "application/octet-stream")
    assert answer.status_code == 422
    assert answer.json()["results"][0]["error"]["reason"] == reason


def test_requests_over_the_limits(server: Server) -> None:
    large = send(server, b"x" * 600_000)
    assert (large.status_code, "a request may have" in error(large)["rule"]) == (413, True)

    def slices() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(12):
            yield b"x" * 50_000

    answer = server.client.post("/predict", content=slices(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 413
    many = server.client.post("/predict", files=[("f", (f"{i}.png", png())) for i in range(5)])
    assert many.status_code == 413
    assert error(many)["fix"] == "send at most 4 files"


def test_wrong_requests_say_what_to_do(server: Server) -> None:
    kind = send(server, b"{}", "application/json")
    assert (kind.status_code, error(kind)["value"]) == (415, "content type 'application/json'")
    assert error(send(server, b""))["rule"] == "holds no image"
    form = server.client.post("/predict", data={"path": "/etc/passwd"}, files=[])
    assert form.status_code == 415
    broken = send(server, b"--x\r\nnonsense", "multipart/form-data; boundary=x")
    assert broken.status_code == 400
    for path in ("/predict", "/data/registry/champion.json", "/../params.yaml"):
        found = server.client.get(path)
        assert found.status_code in (404, 405)
        assert "POST /predict" in error(found)["fix"]


def test_a_body_that_never_comes_is_given_up(server: Server) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as stream:
        head = (
            "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
        )
        stream.sendall(f"{head}\r\nabc".encode())
        began = time.monotonic()
        answer = stream.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 408")
    assert time.monotonic() - began < 15


def test_concurrent_requests_do_not_mix(server: Server, paths: Paths, day: pd.DataFrame) -> None:
    rows = list(day.itertuples(index=False)) * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: send(server, (paths.root / r.path).read_bytes()), rows))
    for row, answer in zip(rows, found, strict=True):
        assert answer.status_code == 200
        assert answer.json()["results"][0]["sha256"] == row.sha256
        assert answer.json()["results"][0]["prediction"] == row.prediction


def test_signs_of_life_and_metrics(server: Server, day: pd.DataFrame) -> None:
    assert server.client.get("/health").json()["limits"]["images"] == 4
    assert server.client.get("/ready").json() == {"status": "ready", "model": day["model"].iloc[0]}
    before = scraped(server)
    send(server, png())
    send(server, b"hello")
    after = scraped(server)
    grown = {k: after[k] - before.get(k, 0.0) for k in after if after[k] != before.get(k)}
    assert grown['headwater_requests_total{code="200",path="/predict"}'] == 1
    assert grown['headwater_requests_total{code="422",path="/predict"}'] == 1
    assert grown["headwater_images_total"] == 1
    assert grown['headwater_rejects_total{reason="not-an-image"}'] == 1
    assert grown['headwater_request_seconds_count{path="/predict"}'] == 2
    assert after[f'headwater_model_info{{id="{day["model"].iloc[0]}"}}'] == 1


def scraped(server: Server) -> dict[str, float]:
    """Prometheus text as {series: value}."""
    lines = server.client.get("/metrics").text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_a_new_champion_takes_over_and_a_damaged_one_does_not(paths: Paths, server: Server) -> None:
    old = str(registry.champion(paths.registry))
    write_encoder(paths, seed=1)
    embed.run(CFG, paths)
    evaluate.run(CFG, paths)
    new = registry.add(paths.registry, files(paths), {"max_side": 16, "image_size": 16})
    pointer = paths.registry / registry.CHAMPION
    write_json(pointer, {"id": "0123456789ab"})
    assert "is not in the registry" in await_ready(server, lambda r: "stale" in r)["stale"]
    assert send(server, png()).json()["model"] == old
    write_json(pointer, {"id": new})
    await_ready(server, lambda r: r["model"] == new)
    assert send(server, png()).json()["model"] == new
    write_json(pointer, {"id": old})
    assert "stale" not in await_ready(server, lambda r: r["model"] == old)


def await_ready(server: Server, wanted: Any) -> dict[str, str]:
    for _ in range(200):
        found: dict[str, str] = server.client.get("/ready").json()
        if wanted(found):
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def test_without_a_champion_it_says_so(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ssl_core", "serve", "--port", "0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "has no champion" in done.stderr
