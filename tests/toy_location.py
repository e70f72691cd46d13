"""A code location for tests of the services: jobs that write down when they ran, and wait."""

import json
import os
import time
from pathlib import Path

import dagster as dg

HERE = Path(os.environ["TOY"])


def tell(context: dg.OpExecutionContext, name: str) -> None:
    """One line, in one write: O_APPEND keeps lines of several processes whole."""
    tags = context.run.tags
    about = {"job": context.job_name, "key": tags["key"], "retry": tags.get("dagster/retry_number")}
    line = json.dumps({"name": name, "time": time.time(), "pid": os.getpid(), **about})
    with (HERE / "log.jsonl").open("a") as out:
        out.write(line + "\n")


def wait_for(name: str) -> None:
    """Until the test says go."""
    while not (HERE / name).exists():
        time.sleep(0.02)


@dg.op(pool="io")
def note(context: dg.OpExecutionContext) -> None:
    tell(context, "begin")
    time.sleep(0.3)
    tell(context, "end")


@dg.op
def linger(context: dg.OpExecutionContext) -> None:
    tell(context, "begin")
    wait_for("go")
    tell(context, "end")


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


# Not more often: after a long outage Dagster makes good the latest tick alone, and the daemon may
# need a minute to find a code server that came back.
@dg.schedule(job=quick, cron_schedule="*/2 * * * *")
def often(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    return dg.RunRequest(tags={"key": context.scheduled_execution_time.isoformat()})


jobs = [quick, long, wrong]
if (HERE / "more").exists():

    @dg.job(executor_def=dg.in_process_executor)
    def more() -> None:
        linger()

    jobs.append(more)
defs = dg.Definitions(jobs=jobs, sensors=[files], schedules=[often])
