"""Classifier two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545).

A regularised logistic regression learns on one half to tell reference from current; what it
achieves on the other half is compared with random relabellings of that half. Nothing that is
fitted sees held-out labels (PCA is fitted on all rows without labels), so the test is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import Array, Score
from ._common import LIMIT, Groups, Matrix, Pile, Rows, TooFew, check, components, pile, test

SEES = "features"
LEAST = 8
DIMENSIONS = 64
STRENGTH = 0.02  # sklearn's C: a few hundred rows in up to 64 whitened dimensions
DRAWS = 50


def halves(unit: Rows, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask (N,) of the half to learn from, by whole units.

    The draw does not look at labels, except that it is repeated until both halves hold two rows
    of both sides: that depends on counts only, so held-out labels stay exchangeable.

    Raises:
        TooFew: a side has too few units for that.
    """
    count = int(unit.max()) + 1
    for _ in range(DRAWS):
        chosen = np.zeros(count, dtype=np.bool_)
        chosen[rng.permutation(count)[: count // 2]] = True
        learn: NDArray[np.bool_] = chosen[unit]
        sizes = [np.sum(labels[part] == k) for part in (learn, ~learn) for k in (0, 1)]
        if min(sizes) >= 2:
            return learn
    rule = "are too few to learn on one half and judge on the other"
    fix = "wait for more, or leave domain_classifier out of deploy.detectors"
    raise TooFew(f"{count} groups of images", rule, fix)


def split(heap: Pile, grouped: bool, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask (N,) of the half to learn from. Without groups, equal rows fall into one half where
    that can be: to recognise a copy of what was learned proves nothing.

    Raises:
        TooFew: a side has too few units for that.
    """
    labels = 1 - heap.truth.astype(np.int64)
    if grouped:
        return halves(heap.unit, labels, rng)
    seen: dict[bytes, int] = {}
    same = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in heap.rows])
    try:
        return halves(same, labels, rng)
    except TooFew:
        return halves(heap.unit, labels, rng)


def auc(ranks: Matrix, marks: Matrix) -> Matrix:
    """Area under the ROC curve (P,) from mid-ranks (N,) for each labelling ``marks`` (N, P)."""
    ones = marks.sum(axis=0)
    zeros = len(marks) - ones
    result: Matrix = (ranks @ marks - ones * (ones + 1) / 2) / np.maximum(ones * zeros, 1)
    return result


def held_out(heap: Pile, rest: NDArray[np.bool_]) -> Pile:
    """The pile's rows under ``rest`` (N,), its units numbered anew."""
    kept, unit = np.unique(heap.unit[rest], return_inverse=True)
    first, stratum = heap.first[kept], heap.stratum[kept]
    return Pile(heap.rows[rest], unit.ravel(), first, stratum, heap.origin[rest], heap.thinned)


def score(
    reference: Array,
    current: Array,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare (N, D) with (M, D). ``statistic`` is the held-out AUC: 0.5 means alike.

    Raises:
        HeadwaterError: fewer than 8 rows or too few groups on a side, unequal widths, values
            not finite.
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression

    sides = check(reference, current, LEAST)
    heap = pile(sides, groups, LIMIT, rng)
    labels = 1 - heap.truth.astype(np.int64)  # 1: current
    features = components(heap.rows, DIMENSIONS)
    about = heap.about(permutations)
    if not features.shape[1]:  # all rows are equal: nothing can differ
        return Score(0.5, 1.0, len(sides[1]), {**about, "accuracy": 0.5, "dimensions": 0})
    learn = split(heap, groups is not None, rng)
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200)
    model.fit(features[learn], labels[learn])
    margin, truth = model.decision_function(features[~learn]), labels[~learn]
    ranks = rankdata(-margin)  # mid-ranks: ties count one half; high where it says reference
    rest = held_out(heap, ~learn)
    observed, p = test(rest, lambda marks: auc(ranks, marks), rng, permutations)
    hits = (margin > 0) == truth
    about |= {
        "accuracy": float((hits[truth == 0].mean() + hits[truth == 1].mean()) / 2),
        "dimensions": features.shape[1],
        "held_out": len(truth),
    }
    return Score(observed, p, len(sides[1]), about)
