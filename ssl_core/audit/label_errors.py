"""Confident learning (arXiv 1911.00068, cleanlab) from predictions that never saw the label.

The predictions are those of linear probes on frozen features, cross-validated by group: a copy or
another view of an image is never in the part that a probe was fitted on.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..evaluate import _common, linear
from ..types import Array, Embeddings, Labels

LEAST_GROUPS = 2  # of a class: with one, no probe that knows the class could judge its images
COLUMNS = ("sha256", "label", "suggested", "quality", "confidence", "issue")


def folds(labels: Labels, groups: NDArray[np.str_], count: int, seed: int) -> Labels:
    """Fold (N,) of each row: whole groups, dealt out class by class, so that a class with several
    groups is in several folds.
    """
    names, first, code = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(labels[first][order], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % count
    result: Labels = fold[code]
    return result


def judged(e: Embeddings) -> NDArray[np.bool_]:
    """Rows (N,) with a label whose class has enough groups to be judged by others."""
    frame = pd.DataFrame({"label": e.labels, "group": e.groups})
    known = frame["label"] >= 0
    groups = frame[known].groupby("label")["group"].nunique()
    enough = groups.index[groups >= LEAST_GROUPS]
    mask: NDArray[np.bool_] = frame["label"].isin(enough).to_numpy(bool)
    return mask


def out_of_sample(e: Embeddings, count: int = 5, seed: int = 0) -> Array:
    """What probes say that were fitted on other groups: (N, C), columns as in ``e.classes``.

    All rows have a label, and every class two groups (:func:`judged`).
    """
    fold = folds(e.labels, e.groups, count, seed)
    found = np.zeros((len(e), len(e.classes)), np.float32)
    place = {name: i for i, name in enumerate(e.classes)}
    for number in np.unique(fold):
        out = fold == number
        head = linear.fit(_common.take(e, ~out))
        columns = [place[name] for name in head.classes]
        found[np.ix_(out, columns)] = head.probabilities(e.features[out])
    return found


def find(e: Embeddings, probabilities: Array) -> pd.DataFrame:
    """Rows as in ``e``: ``COLUMNS``. ``quality`` in [0, 1] is low where the label is doubtful,
    ``issue`` says that confident learning counts it as an error, ``confidence`` is the probability
    of the best other class, ``suggested``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    present, own = np.unique(e.labels, return_inverse=True)
    p = probabilities[:, present].astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        issue = find_label_issues(own, p, n_jobs=1, filter_by="both")
        quality = get_label_quality_scores(own, p)
    rows = np.arange(len(e))
    others = p.copy()
    others[rows, own] = -1
    best = others.argmax(axis=1)
    names = np.asarray(e.classes, dtype=str)[present]
    return pd.DataFrame(
        {
            "sha256": e.sha256,
            "label": names[own],
            "suggested": names[best],
            "quality": quality,
            "confidence": p[rows, best],
            "issue": issue,
        }
    )
