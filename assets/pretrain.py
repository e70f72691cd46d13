"""Self-supervised pretraining, in a process (or torchrun) of its own."""

from typing import Any

import dagster as dg

from ssl_core.artifacts import read_lines
from ssl_core.config import Paths
from ssl_core.report import pictures

from ._dvc import ROOT, counts, run_stage
from ._pictures import picture


def _speed(paths: Paths) -> dict[str, Any]:
    """Throughput, memory and where the time went, if this product was trained here."""
    from ssl_core import telemetry

    path = telemetry.home(paths.runs, paths.pretrain)
    found = telemetry.summary(path)
    if not found:
        return {}
    numbers = {f"speed/{name}": value for name, value in found.items()}
    shares = {n.removeprefix("share/"): v for n, v in found.items() if n.startswith("share/")}
    rows = "\n".join(f"| {name.replace('_', ' ')} | {v:.1%} |" for name, v in shares.items())
    table = dg.MetadataValue.md(f"| part of a step | share |\n|-|-|\n{rows}")
    columns = ("step", "images_per_second", "mfu", *telemetry.SPANS)
    steps = [{k: r.get(k) for k in columns} for r in read_lines(path) if "step" in r]
    return numbers | {"time": table} | picture(pictures.curves(steps), "throughput")


@dg.asset(group_name="model", kinds={"dvc", "pytorch"}, pool="gpu", deps=["shard"])
def pretrain(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The encoder; an interrupted run continues from its last checkpoint."""
    version = run_stage(context, "pretrain")
    paths = Paths(ROOT)
    shown = picture(pictures.curves(read_lines(paths.pretrain / "log.jsonl")), "curves")
    metadata = counts(paths.pretrain) | _speed(paths) | shown
    return dg.MaterializeResult(metadata=metadata, data_version=version)
