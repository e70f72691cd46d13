"""Great Expectations on the manifest and checks on the images; blocks what follows."""

import dagster as dg

from ssl_core.artifacts import read_json
from ssl_core.config import Paths

from ._checks import result, spec, table
from ._dvc import ROOT, counts, run_stage

CHECK = spec(
    "validate",
    "data_is_valid",
    "No critical expectation failed. Limits: section 'validate' of params.yaml.",
)


@dg.asset(
    group_name="data",
    kinds={"dvc", "greatexpectations"},
    pool="io",
    deps=["ingest"],
    check_specs=[CHECK],
)
def validate(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Verdict on manifest and labels, quarantined rows and image issues."""
    version = run_stage(context, "validate")
    file = Paths(ROOT).validation / "report.json"
    shown = {"expectations": table(read_json(file)["expectations"])}
    return dg.MaterializeResult(
        metadata=counts(file.parent) | shown,
        data_version=version,
        check_results=[result(file, "data_is_valid")],
    )
