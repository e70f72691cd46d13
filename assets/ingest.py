"""Every source as one manifest."""

import dagster as dg

from ssl_core.config import Paths, load

from ._dvc import ROOT, counts, run_stage


@dg.asset(group_name="data", kinds={"dvc", "parquet"}, pool="io", deps=["raw_images", "collected"])
def ingest(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Manifest of all readable images; the rest is listed with a reason."""
    # DVC hashes local folders; what lies in a bucket it cannot see, so that is looked at anew.
    remote = any("://" in s for s in load(ROOT / "params.yaml").data.sources)
    version = run_stage(context, "ingest", force=remote)
    found = counts(Paths(ROOT).manifest)
    return dg.MaterializeResult(metadata=found, data_version=version)
