"""Dagster's own launcher of runs, which also knows whether a run's process still lives.

The code server notices a worker that dies. Nobody notices when the code server, or the machine,
dies with it: the run would stand as started for ever, and hold its pools.
"""

from __future__ import annotations

import contextlib

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

BEGAN = "Started process for run"  # what a worker logs first; steps log process ids too
SLACK = 5.0  # seconds between the clocks of the kernel's boot time and of the event


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


class Local(DefaultRunLauncher):
    """Where daemon and code server see the same processes: one machine, or one PID namespace."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        found = worker(self._instance, run.run_id)
        if found is None or alive(*found):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        text = f"process {found[0]} of this run is over, and nobody said how it ended"
        return CheckRunHealthResult(WorkerStatus.FAILED, text)
