"""The review sheet of a labelling request: one offline page that gives back a CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import _images, html

SIDE = 96  # pixels of a thumbnail


def card(row: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """One image: ``ref`` is where it is, the rest of the row is shown or handed back."""
    uri = _images.uri(_images.from_disk(str(row["ref"]), root, SIDE))
    return {**row, "uri": uri}


def render(date: str, rows: Iterable[Mapping[str, Any]], classes: Iterable[str], root: Path) -> str:
    """The page for rows of ref, path, prediction, confidence, inclusion and stratum."""
    cards = [card(row, root) for row in rows]
    context = {"date": date, "cards": cards, "classes": sorted(classes)}
    return html.render(context, "sheet")
