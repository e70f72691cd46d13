"""Accuracy under common corruptions, of probes that were fitted on clean images.

Thirteen kinds at five severities (``_corrupt.py``; not ImageNet-C). Each kind looks at a quarter of
the images, another quarter than the kind before it: a drop is always taken on equal images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import Analyse
from ..evaluate import _common, knn, linear
from ..types import Array, Labels
from . import _corrupt, _pictures, _stats
from ._subject import Finding, Row, Rows, Subject, row

PARTS = 4
SHOWN = (0, 1, 3, 5)  # severities in the picture of samples
PROBES = ("linear", "knn")
Matrix = NDArray[np.float64]


def named(subject: Subject, features: Array) -> dict[str, Labels]:
    """What each probe calls images, (M,)."""
    train = _common.require_labels(subject.train)
    return {
        "linear": linear.named(subject.head, train, features),
        "knn": knn.predict(train, features),
    }


@dataclass(frozen=True)
class Table:
    """Whether a probe was right: ``clean`` (N,), ``right`` (N, kinds, severities), NaN unseen."""

    clean: Matrix
    right: Matrix

    def accuracy(self, groups: NDArray[np.str_], cells: Matrix) -> _common.Interval:
        """Share of right answers in ``cells``, (N, ...)."""
        flat = cells.reshape(len(cells), -1)
        return _stats.ratio(np.nansum(flat, 1), np.isfinite(flat).sum(1).astype(float), groups)

    def drop(self, groups: NDArray[np.str_]) -> _common.Interval:
        """Share of the clean accuracy that is lost, on equal images."""
        flat = self.right.reshape(len(self.right), -1)
        kept = np.nansum(flat, 1)
        found = _stats.ratio(kept, np.isfinite(flat).sum(1) * self.clean, groups)
        return 1 - found[0], 1 - found[2], 1 - found[1]


def look(subject: Subject, chosen: Rows) -> dict[str, Table]:
    """Every probe's table."""
    labels = subject.rows.labels[chosen]
    kinds, n = _corrupt.kinds(subject.source.channels), len(chosen)
    clean = named(subject, subject.rows.features[chosen])
    out = {
        probe: Table(
            (clean[probe] == labels).astype(np.float64),
            np.full((n, len(kinds), len(_corrupt.SEVERITIES)), np.nan),
        )
        for probe in PROBES
    }
    for number, kind in enumerate(kinds):
        part = np.arange(n)[number % min(PARTS, n) :: PARTS]
        images = subject.source.take(chosen[part])
        for place, severity in enumerate(_corrupt.SEVERITIES):
            worse = _corrupt.apply(images, kind, severity, subject.seed)
            for probe, found in named(subject, subject.features(worse)).items():
                out[probe].right[part, number, place] = found == labels[part]
    return out


def _rows(tables: dict[str, Table], groups: NDArray[np.str_], kinds: list[str]) -> list[Row]:
    rows: list[Row] = []

    def add(table: Table, metric: str, slice_: str, cells: Matrix) -> None:
        value, low, high = table.accuracy(groups, cells)
        seen = int(np.isfinite(cells.reshape(len(cells), -1)).any(1).sum())
        rows.append(row(metric, value, seen, slice_, (low, high)))

    for probe, table in tables.items():
        metric = f"{probe}_accuracy"
        add(table, f"{probe}_clean_accuracy", "all", table.clean)
        add(table, f"{probe}_mean_corruption_accuracy", "all", table.right)
        value, low, high = table.drop(groups)
        rows.append(row(f"{probe}_relative_drop", value, len(groups), "all", (low, high)))
        for place, severity in enumerate(_corrupt.SEVERITIES):
            add(table, metric, f"severity:{severity}", table.right[:, :, place])
        for number, kind in enumerate(kinds):
            add(table, metric, kind, table.right[:, number])
            for place, severity in enumerate(_corrupt.SEVERITIES):
                where = f"{kind}/severity:{severity}"
                add(table, metric, where, table.right[:, number, place])
    return rows


def _pictured(subject: Subject, chosen: Rows, tables: dict[str, Table]) -> dict[str, bytes]:
    kinds, table = _corrupt.kinds(subject.source.channels), tables["linear"]
    shares = np.stack([np.nanmean(table.right[:, k], 0) for k in range(len(kinds))])
    ticks = ("", [k.replace("_", " ") for k in kinds])
    severities = [str(s) for s in _corrupt.SEVERITIES]
    title = f"Accuracy of the linear probe; clean: {table.clean.mean():.2f}"
    curves: dict[str, _pictures.Line] = {
        probe: ([0, *_corrupt.SEVERITIES], [t.clean.mean(), *np.nanmean(t.right, (0, 1))])
        for probe, t in tables.items()
    }
    image = subject.source.take(chosen[:1])
    grid = []
    for kind in kinds:
        worse = [_corrupt.apply(image, kind, s, subject.seed)[0] for s in SHOWN]
        grid.append([_pictures.rgb(w) for w in worse])
    return {
        "corruptions": _pictures.heat(shares, title, ticks, ("severity", severities)),
        "corruptions_mean": _pictures.lines(
            {"mean over kinds: accuracy": curves}, ["severity (0: clean)"]
        ),
        "corruptions_samples": _pictures.sheet(grid),
    }


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Accuracy by kind and severity, its mean, and the share of the clean accuracy that is lost."""
    if subject.unlabelled:
        return Finding(missing=subject.unlabelled)
    chosen = subject.draw(cfg.images, labelled=True)
    tables = look(subject, chosen)
    rows = _rows(tables, subject.rows.groups[chosen], _corrupt.kinds(subject.source.channels))
    return Finding(rows, _pictured(subject, chosen, tables))
