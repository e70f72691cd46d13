"""Expectations that a stage left beside its product, as a blocking check of its asset."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from ssl_core.artifacts import read_json


def spec(asset: str, name: str, description: str) -> dg.AssetCheckSpec:
    """A check that blocks what follows."""
    return dg.AssetCheckSpec(name, asset=asset, blocking=True, description=description)


def table(expectations: list[dict]) -> dg.MetadataValue:
    """All expectations as markdown."""
    rows = [
        f"| {'✓' if e['success'] else '✗'} | {e.get('suite', '')} | {e['severity']} | {e['name']} "
        f"| {e['unexpected']} |"
        for e in expectations
    ]
    head = ["| | suite | severity | expectation | unexpected |", "|-|-|-|-|-|"]
    return dg.MetadataValue.md("\n".join([*head, *rows]))


def _said(expectation: dict) -> str:
    """An expectation in words: "at least 100 images (found 80)"."""
    detail = expectation.get("detail")
    return expectation["name"] + (f" ({detail})" if detail else "")


def result(file: Path, name: str) -> dg.AssetCheckResult:
    """The check of a report.json or expectations.json."""
    report = read_json(file)
    failed = [e for e in report["expectations"] if not e["success"]]
    critical = any(e["severity"] == "critical" for e in failed)
    return dg.AssetCheckResult(
        passed=bool(report["success"]),
        check_name=name,
        severity=dg.AssetCheckSeverity.ERROR if critical else dg.AssetCheckSeverity.WARN,
        description="; ".join(map(_said, failed)) or None,
        metadata={"failed": len(failed), "expectations": table(report["expectations"])},
    )
