"""Progress a person can read and a machine can follow.

Every event goes to the sinks: a rich bar on a terminal (a plain line every few seconds
elsewhere), JSON lines in the file named by ``HEADWATER_EVENTS``, and a callable named by
``HEADWATER_SINK`` as ``module:function`` (Dagster's Pipes bridge is one; this package never
imports it by itself). Only rank 0 reports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Event = dict[str, Any]
Sink = Callable[[Event], None]
PLAIN_SECONDS = 5.0


def _file_sink(path: str) -> Sink:
    def write(event: Event) -> None:
        with Path(path).open("a") as stream:
            stream.write(json.dumps(event) + "\n")

    return write


def _sinks() -> list[Sink]:
    sinks: list[Sink] = []
    if path := os.environ.get("HEADWATER_EVENTS"):
        sinks.append(_file_sink(path))
    if name := os.environ.get("HEADWATER_SINK"):
        module, _, attribute = name.partition(":")
        sinks.append(getattr(importlib.import_module(module), attribute))
    return sinks


class Reporter:
    """Reports one stage. Use as a context manager; ``track`` wraps a loop, ``log`` adds numbers."""

    def __init__(self, stage: str, console: Console | None = None) -> None:
        self.stage = stage
        self.quiet = int(os.environ.get("RANK", "0")) != 0
        self.console = console or Console(stderr=True, quiet=self.quiet)
        self.sinks = [] if self.quiet else _sinks()
        self.started = time.monotonic()

    def __enter__(self) -> Reporter:
        self.emit("start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.emit("end" if error is None else "error", seconds=time.monotonic() - self.started)

    def emit(self, kind: str, **values: Any) -> None:
        """Send one event to all sinks."""
        event = {"stage": self.stage, "event": kind, "time": time.time(), **values}
        for sink in self.sinks:
            sink(event)

    def log(self, message: str, **values: Any) -> None:
        """Say one line, with numbers for machines."""
        self.console.print(f"[bold]{self.stage}[/] {message}", highlight=False)
        self.emit("log", message=message, **values)

    @contextlib.contextmanager
    def bar(self, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        """Yield ``advance(n, **numbers)``; shows ETA and ``unit``/s.

        ``done`` is where a resumed job starts; the rate counts only new work.
        """
        live = self.console.is_terminal and not self.quiet
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, disable=not live) as progress:
            task = progress.add_task(self.stage, total=total, completed=done, rate="", note="")
            yield _Advance(self, progress, task, total, unit, done, live)


class _Advance:
    """Counts work and shows it: a live bar, or a line now and then."""

    def __init__(
        self,
        reporter: Reporter,
        progress: Progress,
        task: TaskID,
        total: int,
        unit: str,
        done: int,
        live: bool,
    ) -> None:
        self.reporter, self.progress, self.task = reporter, progress, task
        self.total, self.unit, self.live = total, unit, live
        self.start = self.done = done
        self.began = self.shown = time.monotonic()

    def __call__(self, count: int = 1, **numbers: Any) -> None:
        self.done += count
        now = time.monotonic()
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        note = " ".join(f"{k} {v:.4g}" for k, v in numbers.items() if isinstance(v, float))
        text = f"{rate:.0f} {self.unit}/s"
        if self.live:
            self.progress.update(self.task, completed=self.done, rate=text, note=note)
        if now - self.shown < PLAIN_SECONDS and self.done < self.total:
            return
        self.shown = now
        if not self.live and not self.reporter.quiet:
            eta = (self.total - self.done) / max(rate, 1e-9)
            line = f"{self.reporter.stage} {self.done}/{self.total} {text} eta {eta:.0f}s {note}"
            print(line, file=sys.stderr, flush=True)
        self.reporter.emit("progress", done=self.done, total=self.total, rate=rate, **numbers)
