"""Features of the pinned encoder, for curation only."""

import dagster as dg

from ssl_core.config import Paths

from ._dvc import ROOT, counts, run_stage


@dg.asset(group_name="data", kinds={"dvc", "pytorch"}, pool="gpu", deps=["ingest", "validate"])
def seed_embed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Seed features of every image in the manifest."""
    version = run_stage(context, "seed_embed")
    return dg.MaterializeResult(metadata=counts(Paths(ROOT).seed_embeddings), data_version=version)
