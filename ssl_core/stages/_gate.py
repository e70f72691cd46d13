"""What stages after validation check before they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifacts import read_json
from ..config import Paths
from ..errors import HeadwaterError
from ..validation._gx import RECORD


def require_valid(paths: Paths) -> None:
    """Refuse to go on with data that failed validation.

    Raises:
        HeadwaterError: validation failed; the message names the critical expectations.
    """
    file = paths.validation / "report.json"
    if not file.exists():
        raise HeadwaterError(file, "is missing", "run stage validate first")
    _refuse(file, "mend the data or the limits under 'validate' in params.yaml, then run again")


def require_sound(product: Path, stage: str) -> None:
    """Refuse a product that broke a critical expectation when ``stage`` made it.

    One without a record was made by other means than its stage, and is taken as it is.

    Raises:
        HeadwaterError: the message names the expectations.
    """
    if (product / RECORD).exists():
        _refuse(product / RECORD, f"run stage {stage} again; its inputs may be damaged")


def _refuse(file: Path, fix: str) -> None:
    report: dict[str, Any] = read_json(file)
    if report["success"]:
        return
    failed = [
        e["name"]
        for e in report["expectations"]
        if not e["success"] and e["severity"] == "critical"
    ]
    raise HeadwaterError(", ".join(failed) or "validation", f"failed ({file})", fix)
