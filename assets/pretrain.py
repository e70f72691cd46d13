"""Self-supervised pretraining, in a process (or torchrun) of its own."""

import dagster as dg

from ssl_core.artifacts import read_lines
from ssl_core.config import Paths
from ssl_core.report import pictures

from ._dvc import ROOT, counts, run_stage
from ._pictures import picture


@dg.asset(group_name="model", kinds={"dvc", "pytorch"}, pool="gpu", deps=["shard"])
def pretrain(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The encoder; an interrupted run continues from its last checkpoint."""
    version = run_stage(context, "pretrain")
    folder = Paths(ROOT).pretrain
    shown = picture(pictures.curves(read_lines(folder / "log.jsonl")), "curves")
    return dg.MaterializeResult(metadata=counts(folder) | shown, data_version=version)
