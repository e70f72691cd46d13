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
from dagster._grpc.client import DagsterGrpcClient

CODE_HOST, CODE_PORT = "HEADWATER_CODE_HOST", "HEADWATER_CODE_PORT"  # variables: the code server
BEGAN = "Started process for run"  # what a worker logs first; steps log process ids too
SLACK = 5.0  # seconds between the clocks of the kernel's boot time and of the event
SETTLED = 5.0  # seconds after which the daemon, too, has found a code server that came back


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


def answers(host: str, port: int) -> bool:
    """Whether the code server is there."""
    with contextlib.suppress(DagsterUserCodeUnreachableError):
        DagsterGrpcClient(host=host, port=port).ping("")
        return True
    return False


class Local(DefaultRunLauncher):
    """Where daemon and code server see the same processes: one machine, or one PID namespace."""

    answering_since: float | None = None

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """A run is told dead only when it can be started again: Dagster tries that once."""
        found = worker(self._instance, run.run_id)
        if found is None or alive(*found):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if not self._settled():
            return CheckRunHealthResult(WorkerStatus.RUNNING, "waiting for the code server")
        text = f"process {found[0]} of this run is over, and nobody said how it ended"
        return CheckRunHealthResult(WorkerStatus.FAILED, text)

    def _settled(self) -> bool:
        host, port = os.environ.get(CODE_HOST, "127.0.0.1"), os.environ.get(CODE_PORT, "4000")
        if not answers(host, int(port)):
            self.answering_since = None
            return False
        self.answering_since = self.answering_since or time.monotonic()
        return time.monotonic() - self.answering_since >= SETTLED
