"""Great Expectations on the manifest and checks on the images; blocks what follows."""

from collections.abc import Iterator

import dagster as dg

from ssl_core.artifacts import read_json
from ssl_core.config import Paths

from ._dvc import ROOT, counts, run_stage

CHECK = dg.AssetCheckSpec(
    "data_is_valid",
    asset="validate",
    blocking=True,
    description="No critical expectation failed. Limits: section 'validate' of params.yaml.",
)


def _table(expectations: list[dict]) -> str:
    rows = [
        f"| {'✓' if e['success'] else '✗'} | {e['severity']} | {e['name']} | {e['unexpected']} |"
        for e in expectations
    ]
    return "\n".join(["| | severity | expectation | unexpected |", "|-|-|-|-|", *rows])


@dg.asset(
    group_name="data",
    kinds={"dvc", "greatexpectations"},
    pool="io",
    deps=["ingest"],
    check_specs=[CHECK],
)
def validate(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """Verdict on the manifest, quarantined rows and image issues."""
    version = run_stage(context, "validate")
    folder = Paths(ROOT).validation
    report = read_json(folder / "report.json")
    table = dg.MetadataValue.md(_table(report["expectations"]))
    failed = [e for e in report["expectations"] if not e["success"]]
    critical = any(e["severity"] == "critical" for e in failed)
    yield dg.MaterializeResult(
        metadata={**counts(folder), "expectations": table},
        data_version=version,
        check_results=[
            dg.AssetCheckResult(
                passed=bool(report["success"]),
                check_name="data_is_valid",
                severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
                metadata={"failed": len(failed), "expectations": table},
            )
        ],
    )
