"""The checks of ``headwater doctor`` about installed packages and their licences."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from ._line import OK, WARN, Line

if TYPE_CHECKING:
    from ..config import Config, Paths

OWN = "headwater"
SHOWN = ("torch", "torchvision", "timm", "dvc", "dagster", "numpy", "pyarrow")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What one should know of before selling a service: copyleft over the network, no commerce, or
# source that is not open yet.
FLAGGED = {
    "AGPL": re.compile(r"\bAGPL|Affero", re.IGNORECASE),
    "NC": re.compile(r"non-?\s?commercial|\bCC-BY-NC|[-_ ]NC[-_ ]", re.IGNORECASE),
    "BSL": re.compile(r"Business Source|\bBUSL|\bSSPL|Server Side Public", re.IGNORECASE),
}
HEAD = 200  # characters of a licence field: some packages put the whole text there


def versions(_cfg: Config, _paths: Paths) -> Iterator[Line]:
    """What runs here."""
    found = [f"{n} {v}" for n in SHOWN if (v := _version(n))]
    python = ".".join(map(str, sys.version_info[:3]))
    missing = [n for n in ("torch", "torchvision", "timm") if not _version(n)]
    repair = f"pip install {' '.join(missing)}" if missing else ""
    yield Line(WARN if missing else OK, "versions", f"python {python}, {', '.join(found)}", repair)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def licences(_cfg: Config, _paths: Paths) -> Iterator[Line]:
    """Of everything that headwater needs at run time."""
    names, flagged, unknown = sorted(closure(OWN)), 0, []
    for name in names:
        said = licence(name)
        if not said:
            unknown.append(name)
        for kind, pattern in FLAGGED.items():
            if pattern.search(said):
                flagged += 1
                repair = f"pip uninstall {name}, or have its terms read by who decides on them"
                yield Line(WARN, "licences", f"{name} is under {said[:60]} ({kind})", repair)
    if not names:
        text = f"package {OWN} is not installed, so its dependencies are not known"
        yield Line(WARN, "licences", text, "pip install -e .")
        return
    text = f"{len(names)} packages, {flagged} under AGPL, NC or BSL"
    if unknown:
        text += f"; no licence stated by {', '.join(unknown)}"
    yield Line(OK, "licences", text)


def closure(name: str) -> set[str]:
    """Installed packages that ``name`` needs, its extras left out."""
    found: set[str] = set()
    todo = [name]
    while todo:
        try:
            wanted = metadata.distribution(todo.pop()).requires or []
        except metadata.PackageNotFoundError:
            continue
        for line in wanted:
            match = NAME.match(line)
            if match is None or "extra ==" in line:
                continue
            other = match[0].lower().replace("_", "-")
            if other not in found and _version(other):
                found.add(other)
                todo.append(other)
    return found


def licence(name: str) -> str:
    """What a package states: expression, field, else classifiers."""
    about = metadata.metadata(name)
    stated = about.get("License-Expression") or (about.get("License") or "").strip()[:HEAD]
    if stated and stated.upper() != "UNKNOWN":
        return stated
    lines = about.get_all("Classifier") or []
    return ", ".join(c.rpartition(" :: ")[2] for c in lines if c.startswith("License ::"))


CHECKS: dict[str, Callable[[Config, Paths], Iterator[Line]]] = {
    "versions": versions,
    "licences": licences,
}
