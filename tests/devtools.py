"""Chromium, steered over its DevTools protocol: pages, clicks, texts, pictures."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import CHROMIUM, FLAGS
from PIL import Image
from websockets.sync.client import ClientConnection, connect

PATIENCE = 120.0  # seconds
COLOURS = 128  # of pictures: pages have few, and a palette is a third of the bytes


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self.send("Page.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command and its answer; what happens meanwhile is passed over."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        told = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def text(self) -> str:
        return str(self.ask("document.body ? document.body.innerText : ''"))

    def wait(self, script: str) -> Any:
        """Until an expression is true; the text of the page is the error."""
        end = time.monotonic() + PATIENCE
        while not (found := self.ask(script)):
            assert time.monotonic() < end, (
                f"{script}\non {self.ask('location.href')}:\n{self.text()}"
            )
            time.sleep(0.2)
        return found

    def see(self, *texts: str) -> None:
        """Wait until the page shows all of these."""
        for text in texts:
            self.wait(f"document.body && document.body.innerText.includes({json.dumps(text)})")

    def click(self, text: str) -> None:
        """With the mouse, on the smallest thing that says exactly this."""
        script = """(() => {
          const all = [...document.querySelectorAll('button, a, [role=button], [role=tab], span')];
          const mine = all.filter(e => e.innerText && e.innerText.trim() === %s && e.offsetParent);
          if (!mine.length) return null;
          mine[0].scrollIntoView({block: 'center'});
          const r = mine[0].getBoundingClientRect();
          return [r.x + r.width / 2, r.y + r.height / 2];
        })()""" % json.dumps(text)  # noqa: UP031 (braces)
        x, y = self.wait(script)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            about = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **about)

    def picture(self, file: Path) -> Image.Image:
        """What is seen, as a small PNG."""
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        image = Image.open(io.BytesIO(data)).convert("RGB")
        file.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(COLOURS).save(file, optimize=True)
        return image


@contextlib.contextmanager
def page(work: Path, width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A tab of a Chromium of its own, which is ended with it."""
    assert CHROMIUM
    profile = work / "profile"
    size = f"--window-size={width},{height}"
    words = [*FLAGS, size, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    with (work / "chromium.log").open("wb") as log:
        process = subprocess.Popen([CHROMIUM, *words], stderr=log, start_new_session=True)
    try:
        port = _port(profile / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            (address,) = [
                t["webSocketDebuggerUrl"] for t in json.load(answer) if t["type"] == "page"
            ]
        with connect(address, max_size=None) as socket:
            tab = Page(socket)
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            tab.send("Emulation.setDeviceMetricsOverride", **metrics)
            yield tab
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(file: Path) -> int:
    end = time.monotonic() + PATIENCE
    while not file.exists() or not file.read_text().strip():
        assert time.monotonic() < end, "Chromium did not start"
        time.sleep(0.1)
    return int(file.read_text().splitlines()[0])
