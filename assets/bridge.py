"""The sink that carries a stage's progress from its own process into the Dagster run.

``assets._dvc`` names it in HEADWATER_SINK; ``ssl_core.progress`` then calls :func:`send` for
every event. Under torchrun only rank 0 reports, so only one process opens the pipe.
"""

from __future__ import annotations

import time
from typing import Any

SECONDS = 5.0  # between two lines of progress
_state: dict[str, Any] = {"context": None, "said": 0.0}


def _context() -> Any:
    if _state["context"] is None:
        from dagster_pipes import open_dagster_pipes

        _state["context"] = open_dagster_pipes()
    return _state["context"]


def _line(event: dict[str, Any]) -> str:
    left = (event["total"] - event["done"]) / max(event["rate"], 1e-9)
    known = ("stage", "event", "time", "done", "total", "rate")
    numbers = " ".join(f"{k} {v:.4g}" for k, v in event.items() if k not in known)
    return f"{event['done']}/{event['total']} {event['rate']:.0f}/s eta {left:.0f}s {numbers}"


def send(event: dict[str, Any]) -> None:
    """Say one event in the Dagster run; progress at most every few seconds."""
    kind, now = event["event"], time.monotonic()
    if kind == "log":
        _context().log.info(f"{event['stage']}: {event['message']}")
    elif kind == "progress" and now - _state["said"] >= SECONDS:
        _state["said"] = now
        _context().log.info(f"{event['stage']}: {_line(event)}")
    elif kind in ("end", "error") and _state["context"] is not None:
        # Parents of torchrun never open the pipe, so there is nothing of theirs to close.
        _state["context"].close()
        _state["context"] = None
