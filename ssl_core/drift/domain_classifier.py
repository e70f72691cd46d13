"""Classifier two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545).

A regularised logistic regression learns on one half to tell reference from current; what it
achieves on the other half is compared with random relabellings of that half. Nothing that is
fitted sees held-out labels (PCA is fitted on all rows without labels), so the test is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Array, Score
from ._common import Matrix, check, p_value, relabellings, subsample

LIMIT = 4000  # rows in all
LEAST = 8
DIMENSIONS = 64
STRENGTH = 0.02  # sklearn's C: a few hundred rows in up to 64 whitened dimensions
DRAWS = 50


def reduce(pooled: Matrix) -> Matrix:
    """Whitened principal components (N, D) -> (N, <= 64); constant directions are left out."""
    centred = pooled - pooled.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(pooled))  # ascending
    live = values > max(values[-1], 0) * 1e-10
    scale = values[live][-DIMENSIONS:] ** 0.5
    result: Matrix = (centred @ vectors[:, live][:, -DIMENSIONS:]) / scale
    return result


def halves(
    pooled: Matrix, labels: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mask (N,) of the half to learn from. Equal rows fall into one half where that can be.

    The draw does not look at labels, except that it is repeated until both halves hold both
    sides: that depends on counts only, so held-out labels stay exchangeable.
    """
    _, identity = np.unique(pooled, axis=0, return_inverse=True)
    rows = np.arange(len(pooled))
    for unit in (identity.ravel(), rows):
        for _ in range(DRAWS):
            count = int(unit.max()) + 1
            chosen = np.zeros(count, dtype=np.bool_)
            chosen[rng.permutation(count)[: count // 2]] = True
            learn: NDArray[np.bool_] = chosen[unit]
            sizes = [np.sum(labels[part] == k) for part in (learn, ~learn) for k in (0, 1)]
            if min(sizes) >= 2:
                return learn
    odd_even: NDArray[np.bool_] = rows % 2 == 0
    return odd_even


def auc(ranks: Matrix, marks: Matrix) -> Matrix:
    """Area under the ROC curve (P,) from mid-ranks (N,) for each labelling ``marks`` (N, P)."""
    ones = marks[:, 0].sum()
    zeros = len(marks) - ones
    result: Matrix = (ranks @ marks - ones * (ones + 1) / 2) / (ones * zeros)
    return result


def score(reference: Array, current: Array, rng: np.random.Generator, permutations: int) -> Score:
    """Compare (N, D) with (M, D). ``statistic`` is the held-out AUC: 0.5 means alike.

    Raises:
        HeadwaterError: fewer than 8 rows on a side, unequal widths, values not finite.
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression

    sides = check(reference, current, LEAST)
    x, y = subsample(*sides, LIMIT, rng)
    pooled = np.concatenate([x, y])
    labels = np.r_[np.zeros(len(x), np.int64), np.ones(len(y), np.int64)]
    details: dict[str, Any] = {
        "reference_rows": len(x),
        "current_rows": len(y),
        "permutations": permutations,
        "subsampled": len(pooled) < sum(len(s) for s in sides),
    }
    features = reduce(pooled)
    if not features.shape[1]:  # all rows are equal: nothing can differ
        return Score(0.5, 1.0, len(y), {**details, "accuracy": 0.5, "dimensions": 0})
    learn = halves(pooled, labels, rng)
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200)
    model.fit(features[learn], labels[learn])
    margin, truth = model.decision_function(features[~learn]), labels[~learn]
    ranks = rankdata(margin)  # mid-ranks: ties count one half
    marks = relabellings(int(truth.sum()), len(truth), permutations, rng)
    observed = float(auc(ranks, truth[:, None].astype(np.float64))[0])
    hits = (margin > 0) == truth
    details |= {
        "accuracy": float((hits[truth == 0].mean() + hits[truth == 1].mean()) / 2),
        "dimensions": features.shape[1],
        "held_out": len(truth),
    }
    return Score(observed, p_value(observed, auc(ranks, marks)), len(y), details)
