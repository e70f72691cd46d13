"""What runs on occasion: a new day, late labels, proven harm.

Stages are imported where they are used, here as in ``assets/``: Dagster imports these files in
every step, and torch takes three seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg

from assets._dvc import ROOT
from ssl_core import registry
from ssl_core.artifacts import sha256_file, sha256_json
from ssl_core.config import Config, Paths, load
from ssl_core.stages import trigger

from . import jobs


def _config() -> Config:
    return load(ROOT / "params.yaml")


def run_config(request: trigger.Request) -> dict:
    """Configuration of the repair job for one request."""
    about = {"dates": list(request.dates), "key": request.repair_key}
    return {"ops": {"repair": {"config": about}}}


def run_key(cfg: Config, paths: Paths, request: trigger.Request) -> str:
    """The request's key; with the labels' digest where an earlier run waits for more of them."""
    from ssl_core.stages import repair

    if not repair.waits(paths, request.repair_key):
        return request.key
    files = (ROOT / cfg.deploy.labels / f"{day}.csv" for day in request.dates)
    return f"{request.key}:{sha256_json([sha256_file(f) for f in files if f.exists()])[:12]}"


@dg.sensor(
    job=jobs.repair_champion,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def retrain_on_harm(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One repair when labels prove that the champion has lost accuracy, or can finish a repair.

    Retraining from raw images is its last rung, which ``full_chain`` starts. The cursor is the
    day of the latest request.
    """
    request = trigger.due(_config(), Paths(ROOT), context.cursor or "")
    if request is None:
        return dg.SkipReason("No proven harm to the champion outside the cooldown.")
    context.log.info("%s: %s", request.key, request.reason)
    run = dg.RunRequest(
        run_key=run_key(_config(), Paths(ROOT), request),
        run_config=run_config(request),
        tags={"headwater/cause": request.key, "headwater/days": ",".join(request.dates)},
    )
    return dg.SensorResult(run_requests=[run], cursor=request.day)


@dg.sensor(
    job=jobs.retrain, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING
)
def full_chain(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """The whole chain, once per repair that found no cheaper rung."""
    from ssl_core.stages import repair

    asked = repair.requests(Paths(ROOT))
    done = int(context.cursor or 0)
    runs = [
        dg.RunRequest(
            run_key=f"full:{d['key']}",
            run_config={
                "ops": {"collected": {"config": {"dates": d["dates"], "key": max(d["dates"])}}}
            },
            tags={"headwater/cause": d["key"], "headwater/days": ",".join(d["dates"])},
        )
        for d in asked[done:]
    ]
    return dg.SensorResult(run_requests=runs, cursor=str(len(asked)))


@dg.sensor(
    job=jobs.watch_champion,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def follow_up(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Shadows, approvals and the way back, whenever days, labels or decisions are new."""
    from ssl_core.stages import watch

    cfg, paths = _config(), Paths(ROOT)
    if not watch.open_matters(paths):
        return dg.SkipReason("No shadow, no approved candidate and no champion under watch.")
    now = watch.due(cfg, paths)
    if now == context.cursor:
        return dg.SkipReason("Nothing new since the last look.")
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=now)], cursor=now)


@dg.sensor(minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def tell(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Send alerts to deploy.alerts; what fails is tried again at the next tick."""
    cfg = _config()
    if not cfg.deploy.alerts:
        return dg.SkipReason("deploy.alerts is empty.")
    from ssl_core.stages import alert

    return dg.SkipReason(f"Alerts: {alert.run(cfg, Paths(ROOT))}")


def _days(folder: Path, pattern: str) -> dict[str, Path]:
    return {p.name.removeprefix("date=").removesuffix(".csv"): p for p in folder.glob(pattern)}


@dg.sensor(job=jobs.remonitor, minimum_interval_seconds=60)
def late_labels(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Judge a predicted day again whenever its labels file changed."""
    cfg, paths = _config(), Paths(ROOT)
    predicted = _days(paths.predictions, "date=*")
    files = _days(ROOT / cfg.deploy.labels, "*.csv")
    now = {day: sha256_file(f) for day, f in sorted(files.items()) if day in predicted}
    seen = json.loads(context.cursor or "{}")
    changed = [day for day, digest in now.items() if seen.get(day) != digest]
    runs = [dg.RunRequest(run_key=f"{d}:{now[d][:12]}", partition_key=d) for d in changed]
    return dg.SensorResult(run_requests=runs, cursor=json.dumps(now))


@dg.sensor(job=jobs.deployment, minimum_interval_seconds=60)
def new_day(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Serve the champion over each day that has images and no predictions yet."""
    cfg, paths = _config(), Paths(ROOT)
    waiting = set(_days(ROOT / cfg.deploy.incoming, "????-??-??"))
    waiting -= set(_days(paths.predictions, "date=*"))
    if registry.champion(paths.registry) is None:
        return dg.SensorResult(skip_reason="No champion yet: run the chain first.")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=day, partition_key=day) for day in sorted(waiting)]
    )
