"""The audit's page: doubtful labels to review, giving back a CSV, and what else is suspicious."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from . import _images, html

SIDE = 96  # pixels of a thumbnail to judge a label by
SMALL = 56


def render(
    summary: Mapping[str, Any],
    doubtful: pd.DataFrame,
    findings: Iterable[Mapping[str, Any]],
    classes: Iterable[str],
    root: Path,
) -> str:
    """The page for rows of path, sha256, label, suggested, confidence, and for findings whose
    ``images`` are paths by kind.
    """

    def thumb(ref: str, side: int) -> str | None:
        return _images.uri(_images.from_disk(ref, root, side))

    cards = [
        {**{str(k): v for k, v in row.items()}, "uri": thumb(str(row["path"]), SIDE)}
        for row in doubtful.to_dict("records")
    ]
    rows = [
        {**f, "images": {k: [thumb(r, SMALL) for r in refs] for k, refs in f["images"].items()}}
        for f in findings
    ]
    context = {
        "summary": summary,
        "cards": cards,
        "named": [r for r in rows if r["named"]],
        "others": [r for r in rows if not r["named"]],
        "classes": sorted(classes),
    }
    return html.render(context, "audit")
