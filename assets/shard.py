"""WebDataset shards."""

import dagster as dg

from ssl_core.config import Paths

from ._checks import result, spec
from ._dvc import ROOT, counts, run_stage

CHECK = spec(
    "shard", "shards_are_sound", "Every kept image once, checksums match, splits are disjoint."
)


@dg.asset(
    group_name="data",
    kinds={"dvc", "webdataset"},
    pool="io",
    deps=["curate"],
    check_specs=[CHECK],
)
def shard(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Byte-deterministic tars with an index and checksums."""
    version = run_stage(context, "shard")
    folder = Paths(ROOT).shards
    check = result(folder / "expectations.json", CHECK.name)
    return dg.MaterializeResult(
        metadata=counts(folder), data_version=version, check_results=[check]
    )
