"""What analyses that train share: labels as the head counts them, accuracies, bars."""

from __future__ import annotations

import numpy as np

from ..evaluate import _common
from ..types import Array, Labels
from . import _pictures
from ._subject import DRAWS, Row, Rows, Subject, row

TEST = 2048  # labelled images at most
OFF = "analyse.steps is 0: nothing is trained"


def codes(subject: Subject) -> Labels:
    """The head's class of each row's label, (N,); -1 where there is none."""
    place = {name: i for i, name in enumerate(subject.head.classes)}
    known = np.array([place.get(name, -1) for name in subject.rows.classes], np.int64)
    return np.where(subject.rows.labels >= 0, known[subject.rows.labels], -1)


def named(subject: Subject, logits: Array) -> Labels:
    """Logits (M, head's classes) -> codes of the rows' classes, (M,)."""
    own = [subject.rows.classes.index(name) for name in subject.head.classes]
    found: Labels = np.asarray(own, np.int64)[logits.argmax(axis=1)]
    return found


def accuracies(name: str, predicted: Labels, subject: Subject, test: Rows) -> list[Row]:
    """Accuracy and balanced accuracy on all test rows, accuracy by source."""
    asked, found = subject.rows, []
    labels, groups, sources = asked.labels[test], asked.groups[test], asked.sources[test]
    shares = _common.shares(predicted, labels, groups, DRAWS)
    for metric in ("accuracy", "balanced_accuracy"):
        value, *ends = shares[metric]
        found.append(row(f"{name}_{metric}", value, len(test), "all", (ends[0], ends[1])))
    for source in np.unique(sources):
        mine = sources == source
        hit = predicted[mine] == labels[mine]
        found.append(subject.average(f"{name}_accuracy", hit, test[mine], f"source:{source}"))
    return found


def picture(rows: list[Row], arms: tuple[str, ...], title: str, metric: str) -> bytes:
    """Bars of ``metric`` by slice, one for each arm."""
    groups: dict[str, dict[str, float]] = {}
    for r in rows:
        for arm in arms:
            if r["metric"] == f"{arm}_{metric}":
                name = arm.replace("_", " ")
                groups.setdefault(r["slice"].rpartition(":")[2], {})[name] = r["value"]
    return _pictures.bars(groups, title, metric.replace("_", " "))
