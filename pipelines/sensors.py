"""What runs on occasion: a new day, late labels, proven harm."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg

from assets._dvc import ROOT
from ssl_core import registry
from ssl_core.artifacts import sha256_file
from ssl_core.config import Config, Paths, load
from ssl_core.stages import monitor, trigger

from . import jobs


def _config() -> Config:
    return load(ROOT / "params.yaml")


def run_config(request: trigger.Request) -> dict:
    """Configuration of the retrain job for one request."""
    key = request.key.rpartition(":")[2]
    return {"ops": {"collected": {"config": {"dates": list(request.dates), "key": key}}}}


def ask(cursor: str | None) -> tuple[trigger.Request | None, str]:
    """The request that is due, and the new cursor (day of the latest request)."""
    cfg, paths = _config(), Paths(ROOT)
    found = trigger.decide(
        cfg.deploy, monitor.history(paths), registry.champion(paths.registry), cursor or ""
    )
    return found, found.key.rpartition(":")[2] if found else cursor or ""


@dg.sensor(
    job=jobs.retrain, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING
)
def retrain_on_harm(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One retraining when labels prove that the champion has lost accuracy."""
    request, cursor = ask(context.cursor)
    if request is None:
        return dg.SkipReason("No proven harm to the champion outside the cooldown.")
    context.log.info("%s: %s", request.key, request.reason)
    run = dg.RunRequest(
        run_key=request.key,
        run_config=run_config(request),
        tags={"headwater/cause": request.key, "headwater/days": ",".join(request.dates)},
    )
    return dg.SensorResult(run_requests=[run], cursor=cursor)


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
