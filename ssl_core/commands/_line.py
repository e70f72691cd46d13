"""One finding of ``headwater doctor``."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Line:
    """``repair`` is the command or the step that mends it; empty where nothing is to do."""

    level: str
    name: str
    text: str
    repair: str = ""
