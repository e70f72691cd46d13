"""A code location for tests of the services: jobs that write down when they ran, and wait."""

import json
import os
import time
from pathlib import Path

import dagster as dg

HERE = Path(os.environ["TOY"])


def tell(name: str, **what: object) -> None:
    """One line, in one write: O_APPEND keeps lines of several processes whole."""
    line = json.dumps({"name": name, "time": time.time(), "pid": os.getpid(), **what})
    with (HERE / "log.jsonl").open("a") as out:
        out.write(line + "\n")


def wait_for(name: str) -> None:
    """Until the test says go."""
    while not (HERE / name).exists():
        time.sleep(0.02)


def asked(context: dg.OpExecutionContext) -> str:
    run = context.run
    return run.tags.get("key") or run.tags.get("dagster/scheduled_execution_time") or run.run_id


@dg.op(pool="io")
def note(context: dg.OpExecutionContext) -> None:
    tell("begin", key=asked(context))
    time.sleep(0.3)
    tell("end", key=asked(context))


@dg.op
def linger(context: dg.OpExecutionContext) -> None:
    tell("begin", key=asked(context), retry=context.run.tags.get("dagster/retry_number"))
    wait_for("go")
    tell("end", key=asked(context))


@dg.op
def refuse() -> None:
    raise dg.Failure("on purpose")


@dg.job(executor_def=dg.in_process_executor)
def quick() -> None:
    note()


@dg.job(executor_def=dg.in_process_executor)
def long() -> None:
    linger()


@dg.job(executor_def=dg.in_process_executor)
def wrong() -> None:
    refuse()


@dg.sensor(job=quick, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def files(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One run per file in ``in/``, asked for at each look as the sensors of a project do."""
    names = sorted(p.name for p in (HERE / "in").iterdir())
    return dg.SensorResult([dg.RunRequest(run_key=n, tags={"key": n}) for n in names])


minutely = dg.ScheduleDefinition(name="minutely", job=quick, cron_schedule="* * * * *")
more = [] if not (HERE / "more").exists() else [dg.JobDefinition("more", long.graph)]
defs = dg.Definitions(jobs=[quick, long, wrong, *more], sensors=[files], schedules=[minutely])
