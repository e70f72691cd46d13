"""WebDataset shards."""

import dagster as dg

from ssl_core.config import Paths

from ._dvc import ROOT, counts, run_stage


@dg.asset(group_name="data", kinds={"dvc", "webdataset"}, pool="io", deps=["curate"])
def shard(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Byte-deterministic tars with an index and checksums."""
    version = run_stage(context, "shard")
    return dg.MaterializeResult(metadata=counts(Paths(ROOT).shards), data_version=version)
