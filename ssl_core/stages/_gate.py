"""What stages after validation check before they begin."""

from __future__ import annotations

from ..artifacts import read_json
from ..config import Paths
from ..errors import HeadwaterError


def require_valid(paths: Paths) -> None:
    """Refuse to go on with data that failed validation.

    Raises:
        HeadwaterError: validation failed; the message names the critical expectations.
    """
    file = paths.validation / "report.json"
    if not file.exists():
        raise HeadwaterError(file, "is missing", "run stage validate first")
    report = read_json(file)
    if not report["success"]:
        failed = [
            e["name"]
            for e in report["expectations"]
            if not e["success"] and e["severity"] == "critical"
        ]
        raise HeadwaterError(
            ", ".join(failed) or "validation",
            f"failed ({file})",
            "mend the data or the limits under 'validate' in params.yaml, then run again",
        )
