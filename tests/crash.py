"""Processes that end themselves with SIGKILL at a chosen durable write, and locks of the dead."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ssl_core.lock import exclusive

# Forks from a process that has imported everything and computed nothing: fast, and safe.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["toy", "ssl_core.stages.watch", "ssl_core.stages.repair"])


def arm(number: int) -> None:
    """Let this process be killed just before its n-th rename or flushed line of a log."""
    left, replace, fsync = [number], os.replace, os.fsync

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def replaced(*args: Any, **kwargs: Any) -> None:
        count()
        replace(*args, **kwargs)

    def synced(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND:
            count()
        fsync(handle)

    os.replace, os.fsync = replaced, synced


def _run(act: Callable[..., Any], number: int, args: tuple[Any, ...]) -> None:
    if number:
        arm(number)
    act(*args)


def start(act: Callable[..., Any], *args: Any, number: int = 0) -> BaseProcess:
    """Run ``act(*args)`` in a process of its own, killed at write ``number`` (0: never)."""
    process = CONTEXT.Process(target=_run, args=(act, number, args))
    process.start()
    return process


def ended(process: BaseProcess) -> bool:
    """Wait; whether it came to its end (False: it was killed)."""
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def hold(path: Path, told: Path) -> None:
    """Take a lock, say so, and never give it back."""
    with exclusive(path):
        told.touch()
        time.sleep(600)
