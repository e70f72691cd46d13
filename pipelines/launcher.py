"""Dagster's own launcher of runs, which also knows whether a run's process still lives.

The code server notices a worker that dies. Nobody notices when the code server, or the machine,
dies with it: the run would stand as started for ever, and hold its pools.
"""

from __future__ import annotations

import contextlib
import os
import time

import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._daemon.controller import RELOAD_WORKSPACE_INTERVAL
from dagster._grpc.client import DagsterGrpcClient

CODE_HOST, CODE_PORT = "HEADWATER_CODE_HOST", "HEADWATER_CODE_PORT"  # variables: the code server
BEGAN = "Started process for run"  # what a worker logs first; steps log process ids too
SLACK = 5.0  # seconds between the clocks of the kernel's boot time and of the event
# Seconds after which the daemon, too, has found a code server that came back: what it missed of it,
# it makes good when it loads all code anew.
SETTLED = RELOAD_WORKSPACE_INTERVAL + 10.0


def worker(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Process id of a run's latest worker, and when it told of itself."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    for event in reversed(list(events)):
        told = event.get_dagster_event()
        if (told.message or "").startswith(BEGAN):
            return int(str(told.engine_event_data.metadata["pid"].value)), event.timestamp
    return None


def alive(pid: int, told: float) -> bool:
    """Whether this process runs and is the one that told of itself then: ids are used again."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return not dead and process.create_time() <= told + SLACK
    return False


def server_id(host: str, port: int) -> str | None:
    """Which code server is there: a name that it gives itself at each start; None without one."""
    with contextlib.suppress(DagsterUserCodeUnreachableError):
        return DagsterGrpcClient(host=host, port=port).get_server_id()
    return None


def answers(host: str, port: int) -> bool:
    """Whether the code server is there."""
    return server_id(host, port) is not None


class Local(DefaultRunLauncher):
    """Where daemon and code server see the same processes: one machine, or one PID namespace."""

    seen: str | None = None  # the code server at the last look ...
    since: float = 0.0  # ... and when it was there first

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """A run is told dead only when it can be started again: Dagster tries that once."""
        settled = self._settled()  # at each look: one that came back between two must be noticed
        found = worker(self._instance, run.run_id)
        if found is None or alive(*found):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if not settled:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "waiting for the code server")
        text = f"process {found[0]} of this run is over, and nobody said how it ended"
        return CheckRunHealthResult(WorkerStatus.FAILED, text)

    def _settled(self) -> bool:
        host, port = os.environ.get(CODE_HOST, "127.0.0.1"), os.environ.get(CODE_PORT, "4000")
        there = server_id(host, int(port))
        if there != self.seen:
            self.seen, self.since = there, time.monotonic()
        return there is not None and time.monotonic() - self.since >= SETTLED
