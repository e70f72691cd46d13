"""Take a reviewed sheet in: labels that people corrected, for the next ingest to apply."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from ..artifacts import atomic_file
from ..config import Paths
from ..errors import HeadwaterError
from . import _corrections
from ._corrections import Correction

REASONS = {
    "bad-row": "other fields than the header names",
    "unknown-image": "neither its sha256 nor its path is in the manifest",
    "bad-label": "blank, too long, or with control characters",
    "unknown-class": "no image has this label; --new-classes takes it",
    "label-changed": "the image's label is another one now than the sheet said",
    "contradiction": "this file gives the image more than one label",
}


class Known:
    """What the manifest says: contents by path, labels by content, classes."""

    def __init__(self, paths: Paths) -> None:
        file = paths.manifest / "manifest.parquet"
        if not file.exists():
            raise HeadwaterError(file, "is missing", "run stage ingest first")
        frame = pd.read_parquet(file, columns=["path", "sha256", "label"])
        frame["label"] = frame["label"].fillna("")
        self.by_path = dict(zip(frame["path"], frame["sha256"], strict=True))
        self.path = dict(zip(frame["sha256"], frame["path"], strict=True))
        self.labels = frame.groupby("sha256")["label"].agg(set).to_dict()
        self.classes = set(frame["label"]) - {""}

    def content(self, row: Correction) -> str:
        """The sha256 a row speaks of; empty if the manifest does not know it."""
        sha = row["sha256"] or self.by_path.get(row["path"], "")
        return sha if sha in self.labels else ""


def judge(row: Correction | None, known: Known, new_classes: bool) -> str:
    """Why a row is not taken; empty if it is."""
    if row is None:
        return "bad-row"
    sha, label = known.content(row), row["label"]
    if not sha:
        return "unknown-image"
    if not _corrections.plain(label):
        return "bad-label"
    if label not in known.classes and not new_classes:
        return "unknown-class"
    if row["given"] and not {row["given"], label} & known.labels[sha]:
        return "label-changed"
    return ""


def sort(
    file: Path, known: Known, new_classes: bool
) -> tuple[dict[str, Correction], list[dict[str, Any]]]:
    """Rows that are taken, by sha256, and the others with line and reason."""
    good: dict[str, list[tuple[int, Correction]]] = {}
    rejects: list[dict[str, Any]] = []
    for line, row in _corrections.parse(file):
        if reason := judge(row, known, new_classes):
            rejects.append({"line": line, "reason": reason, **(row or {})})
            continue
        assert row is not None
        sha = known.content(row)
        given = row["given"] or sorted(known.labels[sha])[0]
        whole = {"sha256": sha, "path": known.path[sha], "given": given, "label": row["label"]}
        good.setdefault(sha, []).append((line, whole))
    taken = {}
    for sha, rows in good.items():
        if len({row["label"] for _, row in rows}) > 1:
            rejects += [{"line": n, "reason": "contradiction", **row} for n, row in rows]
        else:
            taken[sha] = rows[0][1]
    return taken, sorted(rejects, key=lambda r: int(r["line"]))


def run(paths: Paths, file: Path, new_classes: bool = False) -> dict[str, Any]:
    """Add the corrections of a CSV file (sha256 or path, and label) to data/corrections.csv.

    Bad rows change nothing and are listed in reports/corrections-rejects.csv with a reason. A row
    whose label is the given one confirms it: the next audit does not ask again.

    Raises:
        HeadwaterError: no manifest, or a file that is no such CSV.
    """
    stored = _corrections.read(paths.corrections)
    taken, rejects = sort(file, Known(paths), new_classes)
    for sha, row in taken.items():  # what the source said stays what it said
        row["given"] = stored[sha]["given"] if sha in stored else row["given"]
    new = {sha: row for sha, row in taken.items() if stored.get(sha) != row}
    if new:
        _corrections.write(paths.corrections, {**stored, **new})
    listed = paths.reports / "corrections-rejects.csv"
    with atomic_file(listed) as temp:
        table = pd.DataFrame(rejects, columns=["line", "reason", *_corrections.COLUMNS])
        table.to_csv(temp, index=False, lineterminator="\n")
    reasons = Counter(r["reason"] for r in rejects)
    return {
        "added": len(new.keys() - stored.keys()),
        "replaced": len(new.keys() & stored.keys()),
        "unchanged": len(taken) - len(new),
        "confirmed": sum(row["label"] == row["given"] for row in new.values()),
        "rejected": len(rejects),
        "by_reason": {f"{k} ({REASONS[k]})": n for k, n in sorted(reasons.items())},
        "rejects": listed.as_posix() if rejects else "",
        "corrections": len(stored) + len(new.keys() - stored.keys()),
        "next": "headwater run (stage ingest applies them); git add data/corrections.csv",
    }
