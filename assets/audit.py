"""Doubtful labels, confounders and missing metadata; beside the chain, which never waits for it."""

import dagster as dg

from ssl_core.artifacts import read_json
from ssl_core.config import Paths, load

from ._dvc import ROOT


@dg.asset(group_name="model", kinds={"html"}, pool="io", deps=["embed"])
def audit(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """A page to review labels on, with what is suspicious about metadata."""
    from ssl_core.stages import audit as stage

    paths = Paths(ROOT)
    found = stage.run(load(ROOT / "params.yaml"), paths)
    lines = [f"- {text}" for text in found["confounders"]] or ["None is named."]
    shown = {
        "page": dg.MetadataValue.path(str((paths.audit / stage.PAGE).resolve())),
        "findings": dg.MetadataValue.md("\n".join(lines)),
    }
    numbers = read_json(paths.audit / "lineage.json")["counts"]
    return dg.MaterializeResult(metadata={**numbers, **shown})
