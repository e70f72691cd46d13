"""``headwater doctor``: is everything here that work needs, and is what lies here whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from ..errors import HeadwaterError
from ._common import DEFAULT, Json, Params, emit, settings
from ._line import FAIL, OK, WARN, Line

if TYPE_CHECKING:
    from ..config import Config, Paths

Check = Callable[["Config", "Paths"], Iterator[Line]]
MARKS = {OK: "✓", WARN: "!", FAIL: "✗"}


def command(params: Params = DEFAULT, as_json: Json = False) -> None:
    """Check machine, disk, S3, DVC, products, registry and licences; exit code 1 if one fails.

    Each line is ok, warn or fail, with the command that mends it. Nothing is changed. Examples:

        headwater doctor

        headwater doctor --json | jq -r '.[] | select(.level != "ok") | .repair'
    """
    from ..config import Config, Paths

    try:
        cfg, lines = settings(params), [Line(OK, "config", f"{params} is valid")]
    except HeadwaterError as error:
        cfg, lines = Config(), [_failed("config", error)]
    lines += examine(cfg, Paths())
    if as_json:
        emit([vars(line) for line in lines])
    else:
        typer.echo(text(lines))
    if any(line.level == FAIL for line in lines):
        sys.exit(1)


def examine(cfg: Config, paths: Paths) -> list[Line]:
    """All checks. One that cannot be made is a failure with its reason, not a gap."""
    from . import _health, _packages

    checks: dict[str, Check] = {**_health.CHECKS, **_packages.CHECKS}
    found: list[Line] = []
    for name, check in checks.items():
        try:
            found += check(cfg, paths)
        except HeadwaterError as error:
            found.append(_failed(name, error))
        except Exception as error:  # damaged files raise anything; the other checks go on
            text_ = f"could not be checked ({type(error).__name__}: {error})"
            found.append(Line(FAIL, name, text_, "dvc checkout, or run the stage again"))
    return found


def _failed(name: str, error: HeadwaterError) -> Line:
    return Line(FAIL, name, f"{error.value} {error.rule}", error.fix)


def text(lines: list[Line]) -> str:
    """One line each, the repair below it, and a sum."""
    shown: list[str] = []
    for line in lines:
        shown.append(f"{MARKS[line.level]} {line.name:<10} {line.text}")
        if line.repair:
            shown.append(f"  {'':<10} -> {line.repair}")
    count: dict[str, Any] = {k: sum(x.level == k for x in lines) for k in (OK, WARN, FAIL)}
    return "\n".join([*shown, f"{count[OK]} ok, {count[WARN]} to look at, {count[FAIL]} failed"])
