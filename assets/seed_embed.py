"""Features of the pinned encoder, for curation only."""

import dagster as dg

from ssl_core.config import Paths

from ._checks import result, spec
from ._dvc import ROOT, counts, run_stage

CHECK = spec(
    "seed_embed", "seed_features_are_sound", "Finite, aligned with the manifest, not all alike."
)


@dg.asset(
    group_name="data",
    kinds={"dvc", "pytorch"},
    pool="gpu",
    deps=["ingest", "validate"],
    check_specs=[CHECK],
)
def seed_embed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Seed features of every image in the manifest."""
    version = run_stage(context, "seed_embed")
    folder = Paths(ROOT).seed_embeddings
    check = result(folder / "expectations.json", CHECK.name)
    return dg.MaterializeResult(
        metadata=counts(folder), data_version=version, check_results=[check]
    )
