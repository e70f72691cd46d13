"""Which images are kept, and on which side of the split."""

import dagster as dg

from ssl_core.artifacts import read_json
from ssl_core.config import Paths
from ssl_core.report import pictures

from ._dvc import ROOT, counts, run_stage
from ._pictures import picture


@dg.asset(
    group_name="data", kinds={"dvc", "faiss"}, pool="io", deps=["ingest", "validate", "seed_embed"]
)
def curate(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Duplicates dropped, clusters balanced, groups split without leaks."""
    version = run_stage(context, "curate")
    paths = Paths(ROOT)
    summary = read_json(paths.curated / "summary.json")
    shown = picture(pictures.tail(**summary["classes"]), "long tail")
    shown |= picture(pictures.duplicates(paths.curated, ROOT), "duplicates")
    if summary["clusters"]["before"]:
        shown |= picture(pictures.clusters(**summary["clusters"]), "clusters")
    return dg.MaterializeResult(metadata=counts(paths.curated) | shown, data_version=version)
