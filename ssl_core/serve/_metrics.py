"""What Prometheus scrapes."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/embed", "/predict", "/health", "/ready", "/metrics")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server. Labels are bounded: unknown paths are one."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("headwater_requests", "requests", ["path", "code"], registry=own)
        self.seconds = Histogram(
            "headwater_request_seconds", "latency", ["path"], registry=own, buckets=BUCKETS
        )
        self.images = Counter("headwater_images", "images answered", registry=own)
        self.rejects = Counter("headwater_rejects", "images refused", ["reason"], registry=own)
        self.busy = Gauge("headwater_requests_in_progress", "requests at work", registry=own)
        self.reloads = Counter("headwater_reloads", "changes of the model", registry=own)
        self.model = Gauge("headwater_model_info", "the model that serves", ["id"], registry=own)
        self.stuck = Gauge(
            "headwater_reload_failed", "1 while the champion could not be loaded", registry=own
        )

    def serving(self, name: str) -> None:
        """Another model serves."""
        self.model.clear()
        self.model.labels(name).set(1)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware: counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        began, code = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        self.metrics.busy.inc()
        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.busy.dec()
            self.metrics.requests.labels(path, str(code)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)


def reasons(results: list[dict[str, Any]]) -> list[str]:
    """Why images were refused."""
    return [r["error"]["reason"] for r in results if "error" in r]
