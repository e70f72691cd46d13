"""Is the encoder good? Measures beside the baselines."""

from typing import Any

import dagster as dg
import pandas as pd

from ssl_core.artifacts import read_json
from ssl_core.config import Paths
from ssl_core.report import pictures

from ._dvc import ROOT, run_stage
from ._pictures import picture


def _numbers(metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {f"{e}/{m}": float(v) for e, row in metrics.items() for m, v in row.items()}


def _picture(results: pd.DataFrame) -> bytes:
    rows = results[(results["measure"] == "linear") & (results["metric"] == "accuracy")]
    return pictures.intervals(rows, "linear probe accuracy")


@dg.asset(
    group_name="model",
    kinds={"dvc", "scikitlearn"},
    pool="gpu",
    deps=["ingest", "seed_embed", "shard", "pretrain", "embed"],
)
def evaluate(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """kNN, linear probe, few-shot and label-free measures, with intervals and slices."""
    version = run_stage(context, "evaluate")
    folder = Paths(ROOT).evaluation
    results = pd.read_parquet(folder / "results.parquet")
    metadata = _numbers(read_json(folder / "metrics.json"))
    metadata |= picture(_picture(results), "linear probe")
    return dg.MaterializeResult(metadata=metadata, data_version=version)
