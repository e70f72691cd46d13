"""Deployment by day: what the champion said, and whether the day is normal."""

import dagster as dg

from ssl_core import registry
from ssl_core.config import Paths, load
from ssl_core.report import pictures

from ._dvc import ROOT
from ._pictures import picture

DAYS = dg.DailyPartitionsDefinition(start_date="2025-01-01")


@dg.asset(group_name="deployment", kinds={"pytorch", "parquet"}, pool="gpu", partitions_def=DAYS)
def predictions(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Prediction log of one day: embedding, prediction, confidence, label if known."""
    from ssl_core.stages import predict as stage

    paths = Paths(ROOT)
    found = stage.run(load(ROOT / "params.yaml"), paths, context.partition_key)
    context.log.info("%s", found)
    version = dg.DataVersion(f"{registry.champion(paths.registry)}:{found['images']}")
    return dg.MaterializeResult(metadata=found, data_version=version)


def _result(verdict: dict) -> dg.AssetCheckResult:
    harm = verdict["verdict"] == "harm"
    return dg.AssetCheckResult(
        passed=verdict["verdict"] == "ok",
        check_name="day_is_normal",
        severity=dg.AssetCheckSeverity.ERROR if harm else dg.AssetCheckSeverity.WARN,
        metadata={"verdict": verdict["verdict"], "reason": verdict["reason"]},
    )


def _numbers(verdict: dict) -> dict:
    found = {f"p/{name}": s["p_value"] for name, s in verdict["scores"].items()}
    found |= {f"statistic/{name}": s["statistic"] for name, s in verdict["scores"].items()}
    found["evidence"] = (verdict["evidence"] or {}).get("value")
    right = verdict["accuracy"] or {}
    found |= {k: right.get(k) for k in ("value", "low", "high", "reference")}
    return {name: value for name, value in found.items() if value is not None}


@dg.asset(
    group_name="deployment",
    kinds={"python"},
    pool="io",
    partitions_def=DAYS,
    deps=[predictions],
    check_specs=[dg.AssetCheckSpec("day_is_normal", asset="monitor")],
)
def monitor(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Drift against the reference, harm where labels came."""
    from ssl_core.stages import monitor as stage

    paths = Paths(ROOT)
    verdict = stage.run(load(ROOT / "params.yaml"), paths, context.partition_key)
    context.log.info(verdict["reason"])
    shown = picture(pictures.timeline(stage.history(paths)), "timeline")
    return dg.MaterializeResult(
        metadata={"verdict": verdict["verdict"], **_numbers(verdict), **shown},
        check_results=[_result(verdict)],
    )
