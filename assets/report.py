"""The offline page."""

import dagster as dg

from ssl_core.config import Paths, load

from ._dvc import ROOT


@dg.asset(group_name="deployment", kinds={"html"}, pool="io", deps=["promote"])
def report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One HTML file about data, training, evaluation and deployment."""
    from ssl_core.stages import report as stage

    found = stage.run(load(ROOT / "params.yaml"), Paths(ROOT))
    link = dg.MetadataValue.path(str((ROOT / found["file"]).resolve()))
    return dg.MaterializeResult(metadata={"page": link, "bytes": found["bytes"]})
