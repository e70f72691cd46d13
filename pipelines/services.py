"""One process that is kept running: started in a session of its own, ended with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

GRACE = 30.0  # seconds to end in after SIGTERM; a training saves its state
PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before what ended is started again
CALM = 120.0  # seconds of life after which these begin anew
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


@dataclass
class Service:
    """One process of the four, and how it is kept running."""

    name: str
    command: list[str]
    ready: Callable[[], bool] = lambda: True  # what it needs is there
    user: str | None = None
    stop: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None
    born: float = 0.0
    falls: int = 0
    due: float = 0.0
    env: dict[str, str] = field(default_factory=dict)
    everyone: bool = False  # what it started gets the signal too

    def start(self, output: Path, root: Path) -> None:
        """Its output is appended to a file in ``output``; ``root`` is its working directory."""
        output.mkdir(parents=True, exist_ok=True)
        with (output / f"{self.name}.log").open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.env,
                cwd="/" if self.user else root,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                user=self.user,
                start_new_session=True,
                preexec_fn=_dies_with_parent(self.stop),
            )
        self.born = time.monotonic()

    def tend(self, output: Path, root: Path) -> bool:
        """Note that it ended, start it when that is due and possible; whether it was started."""
        if self.process and (code := self.ended()) is not None:
            self.fell()
            wait = self.due - time.monotonic()
            print(f"{self.name} ended with {code}; again in {wait:.0f} s", flush=True)
        if self.process or time.monotonic() < self.due or not self.ready():
            return False
        self.start(output, root)
        return True

    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll() if self.process else 0

    def fell(self) -> None:
        """Note that it ended by itself; what it had started must not go on without it."""
        assert self.process
        tell(self.process.pid, signal.SIGKILL)
        if time.monotonic() - self.born > CALM:
            self.falls = 0
        self.due = time.monotonic() + PAUSES[min(self.falls, len(PAUSES) - 1)]
        self.falls += 1
        self.process = None

    def finish(self) -> None:
        """Ask it to end, wait, and end what is left of its session."""
        if self.process is None:
            return
        (tell if self.everyone else os.kill)(self.process.pid, self.stop)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and (self.ended() is None or _some(self.process.pid)):
            time.sleep(0.1)
        tell(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _dies_with_parent(number: int) -> Callable[[], None] | None:
    """In the child: the signal that it gets when its parent is killed (Linux)."""
    if sys.platform != "linux":
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, number) and None


def _some(leader: int) -> bool:
    """Whether any process of a session is left."""
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def tell(leader: int, number: int) -> None:
    """To all of a session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
