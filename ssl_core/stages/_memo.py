"""What was computed once and follows from its key alone: it may be deleted at any time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..artifacts import read_json, write_json


def recall(folder: Path, key: str, make: Callable[[], Any]) -> Any:
    """The plain value kept under ``key`` in ``folder``; made and kept where there is none.

    ``key`` must name all that ``make`` looks at, and be fit for a file's name.
    """
    file = folder / f"{key}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return read_json(file)
