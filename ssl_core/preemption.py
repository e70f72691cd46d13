"""SIGTERM and SIGINT: finish the step, save, leave.

A scheduler that takes the machine away sends SIGTERM and expects exit code 0: nothing failed.
(A Job of Kubernetes takes 0 for done: HEADWATER_PREEMPTED_EXIT names another code.)
Whoever presses Ctrl-C must not see the next command of a chain start: that ends with 130. In
both cases no product is written, so that DVC, which removes a stage's outputs before it runs
the stage, reports the output as missing and does not take the stage for done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from . import dist

EXIT = "HEADWATER_PREEMPTED_EXIT"  # the variable that names the exit code after SIGTERM


class Preempted(SystemExit):
    """Training was asked to stop and did, its state saved: the process ends with this code."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        asked = int(os.environ.get(EXIT, "0"))
        super().__init__(asked if self.signal is signal.SIGTERM else 128 + number)


class Stop:
    """Which signal came, if any; 0 for none."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler. A second Ctrl-C does not wait for the step.

        Raises:
            KeyboardInterrupt: SIGINT came for the second time.
        """
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def agreed(self) -> int:
        """The signal that any rank has received, the same answer on all of them."""
        return dist.largest(self.signal)


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Take both signals into a :class:`Stop` instead of dying of them (main thread only)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
