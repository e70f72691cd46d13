"""Kolmogorov–Smirnov on each feature, Benjamini–Hochberg over features, permuted as a whole.

The statistic is the smallest adjusted p-value (Simes 1986), which needs independent features to
be a p-value itself; relabelling makes it one whatever the features have to do with each other.
Up to ``DIMENSIONS`` features are taken as they are, more are first reduced to so many principal
components of the pooled sample (arXiv 1810.11953 compares such reductions).
"""

from __future__ import annotations

import numpy as np

from ..types import Array, Score
from ._common import Groups, Matrix, check, components, pile, simes, test
from ._ks import p_values

SEES = "features"
LEAST = 4
DIMENSIONS = 16
LIMIT = 1000  # rows in all: every relabelling is counted through for every feature
RATE = 0.05  # false discovery rate of the features that are named


def score(
    reference: Array,
    current: Array,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare (N, D) with (M, D). ``statistic`` is -log10 of the smallest adjusted p-value.

    ``details["changed"]`` names the features (or components, largest variance first) that
    Benjamini–Hochberg rejects at 5 %.

    Raises:
        HeadwaterError: fewer than 4 rows on a side, unequal widths, values not finite.
    """
    from scipy.stats import false_discovery_control

    sides = check(reference, current, LEAST)
    heap = pile(sides, groups, LIMIT, rng)
    reduced = sides[0].shape[1] > DIMENSIONS
    z = components(heap.rows, DIMENSIONS)[:, ::-1] if reduced else heap.rows

    def statistic(marks: Matrix) -> Matrix:
        result: Matrix = -np.log10(np.maximum(simes(p_values(z, marks)), 1e-300))
        return result

    about = {**heap.about(permutations), "reduced": reduced, "dimensions": z.shape[1]}
    if not z.shape[1]:
        return Score(0.0, 1.0, len(sides[1]), {**about, "changed": []})
    observed, p = test(heap, statistic, rng, permutations)
    adjusted = false_discovery_control(p_values(z, heap.truth[:, None])[:, 0])
    changed = np.flatnonzero(adjusted <= RATE).tolist()
    return Score(observed, p, len(sides[1]), {**about, "changed": changed})
