"""What a request may cost: bytes, time, and how many at once. Checked while it arrives."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Limits:
    """Of one request; ``waiting`` requests are taken at a time, the next is sent away."""

    images: int = 32
    bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    seconds: float = 30.0
    waiting: int = 32


class Refused(Exception):
    """A request that is not served: HTTP status, and value, rule and fix as everywhere."""

    def __init__(self, status: int, value: str, rule: str, fix: str) -> None:
        self.status, self.value, self.rule, self.fix = status, value, rule, fix
        super().__init__(f"{value}: {rule}")

    def response(self) -> JSONResponse:
        """The same as JSON."""
        body = {"error": {"value": self.value, "rule": self.rule, "fix": self.fix}}
        headers = {"Retry-After": "1"} if self.status == 503 else {}
        if self.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        return JSONResponse(body, self.status, headers)


class Bounded:
    """ASGI middleware: a POST over the limits is refused before it is held in memory."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.busy = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        refused = self._at_once(scope)
        if refused:
            await refused.response()(scope, receive, send)
            return
        self.busy += 1
        try:
            await self.app(scope, self._counted(receive), send)
        finally:
            self.busy -= 1

    def _at_once(self, scope: Scope) -> Refused | None:
        """What the header alone shows."""
        if self.busy >= self.limits.waiting:
            rule = f"is the most at a time ({self.limits.waiting})"
            return Refused(503, f"{self.busy} requests", rule, "send it again in a moment")
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.limits.bytes:
            return self._too_large(int(length))
        return None

    def _too_large(self, size: int) -> Refused:
        rule = f"is more than a request may have ({self.limits.bytes:,})"
        return Refused(413, f"{size:,} bytes", rule, "send fewer or smaller images at a time")

    def _counted(self, receive: Receive) -> Receive:
        """``receive`` that stops a body which is too long or too slow."""
        seen, end = 0, time.monotonic() + self.limits.seconds

        async def bounded() -> Message:
            nonlocal seen
            try:
                message = await asyncio.wait_for(receive(), max(0.001, end - time.monotonic()))
            except TimeoutError:
                rule = f"did not arrive within {self.limits.seconds:g} s"
                raise Refused(408, f"{seen:,} bytes", rule, "send it faster, or less") from None
            seen += len(message.get("body", b""))
            if seen > self.limits.bytes:
                raise self._too_large(seen)
            return message

        return bounded


def settings(limits: Limits) -> dict[str, Any]:
    """For /health: what a client may send."""
    return {"images": limits.images, "bytes": limits.bytes, "pixels": limits.pixels}
