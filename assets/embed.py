"""Features of the new encoder."""

import dagster as dg

from ssl_core.config import Paths
from ssl_core.report import pictures

from ._checks import result, spec
from ._dvc import ROOT, counts, run_stage
from ._pictures import picture

CHECK = spec("embed", "features_are_sound", "Finite, aligned with the shards, not all alike.")


@dg.asset(
    group_name="model",
    kinds={"dvc", "pytorch"},
    pool="gpu",
    deps=["shard", "pretrain"],
    check_specs=[CHECK],
)
def embed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Frozen features of the train and test split, with what they find alike."""
    version = run_stage(context, "embed")
    paths = Paths(ROOT)
    shown = picture(pictures.retrieval_grid(paths.embeddings, paths.shards), "neighbours")
    shown |= picture(pictures.patch_maps(paths.pretrain, paths.shards), "patch features")
    return dg.MaterializeResult(
        metadata=counts(paths.embeddings) | shown,
        data_version=version,
        check_results=[result(paths.embeddings / "expectations.json", CHECK.name)],
    )
