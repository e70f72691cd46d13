"""What earlier validations found: a log that only grows, beside the products and versioned too.

It is replaced whole, never appended to in place: it may be a link into DVC's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..artifacts import read_lines, write_bytes


def accepted(file: Path, content: str) -> dict[str, Any]:
    """The last successful validation before ``content`` was first seen; {} without one.

    So that to validate the same data again compares it with the same thing, and not with itself.
    """
    before: dict[str, Any] = {}
    for line in read_lines(file):
        if line["content"] == content:
            break
        if line["success"]:
            before = line
    return before


def remember(file: Path, line: Mapping[str, Any]) -> None:
    """Add a line with the time, unless the last one says the same."""
    lines = read_lines(file)
    last = {k: v for k, v in (lines[-1] if lines else {}).items() if k != "time"}
    if last == json.loads(json.dumps(line)):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    everything = [*lines, {**line, "time": now}]
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in everything)
    write_bytes(file, text.encode())
