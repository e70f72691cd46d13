"""Images that are never taken again: ``data/forgotten.csv``, by sha256, and the log of requests.

The list only grows. It holds no path and no picture: a hash tells nothing about an image to whom
does not have it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .artifacts import append_line, write_bytes
from .errors import HeadwaterError
from .lock import exclusive

COLUMNS = ("sha256", "requested_at", "reason")
REASON = "forgotten"  # of the reject
EMPTY = ",".join(COLUMNS) + "\n"
SHA = re.compile(r"[0-9a-f]{64}")


def entries(file: Path) -> list[dict[str, str]]:
    """The list; empty where there is no file.

    Raises:
        HeadwaterError: a line without a whole sha256: the image it stood for would come back.
    """
    if not file.exists():
        return []
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline=""))
    found = list(reader)
    for number, row in enumerate(found, 2):
        if not SHA.fullmatch(row.get("sha256") or ""):
            rule = "holds no sha256 of 64 hex digits in column 'sha256'"
            raise HeadwaterError(f"{file}, line {number}", rule, "restore the file from git")
    return found


def read(file: Path) -> frozenset[str]:
    """The sha256 of every forgotten image."""
    return frozenset(row["sha256"] for row in entries(file))


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add(file: Path, lock: Path, sha: str, reason: str) -> bool:
    """Put an image on the list; False if it was there."""
    with exclusive(lock):
        rows = entries(file)
        if any(row["sha256"] == sha for row in rows):
            return False
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, {"sha256": sha, "requested_at": now(), "reason": reason}])
        write_bytes(file, out.getvalue().encode())
        return True


def note(log: Path, event: str, sha: str, **about: Any) -> None:
    """Add a line to the log of requests."""
    record: Mapping[str, Any] = {"time": now(), "event": event, "sha256": sha, **about}
    append_line(log, record)
