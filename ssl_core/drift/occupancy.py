"""How full the concepts are: cluster occupancy, with what is new and what has vanished by name.

k-means on both samples together, without labels: a concept that only exists now gets a cluster
of its own, and fitting sees no labels, so the permutation test of the 2 x K table is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import Array, Score
from ._common import LIMIT, Groups, Matrix, Pile, Rows, check, chi_square, components, pile, test

SEES = "features"
LEAST = 8
DIMENSIONS = 32
CLUSTERS = 16
PER_CLUSTER = 20  # rows that a cluster should have on average
RARE = 0.1  # a concept is new if its share was below this part of what it is now
FEWEST = 5  # rows that make a concept
EXAMPLES = 5


def clusters(z: Matrix, rng: np.random.Generator) -> tuple[Rows, Matrix]:
    """The cluster of each row (N,), and its distance (N,) to the centre."""
    from sklearn.cluster import KMeans

    count = int(np.clip(len(z) // PER_CLUSTER, 2, CLUSTERS))
    count = min(count, len(np.unique(z, axis=0)))
    model = KMeans(count, n_init=1, random_state=int(rng.integers(2**31)))
    near = model.fit(z).transform(z)
    return near.argmin(axis=1).astype(np.int64), near.min(axis=1)


def concepts(heap: Pile, label: Rows, far: Matrix) -> dict[str, list[dict[str, Any]]]:
    """Clusters that are new or have vanished, with their rows nearest to the centre.

    ``examples`` are rows of the current sample for a new concept, of the reference for one that
    vanished.
    """
    first = heap.truth == 1
    sizes = {True: first.sum(), False: (~first).sum()}
    found: dict[str, list[dict[str, Any]]] = {"new": [], "vanished": []}
    for c in range(int(label.max()) + 1):
        was, now = ((label == c) & side for side in (first, ~first))
        shares = {"reference": was.sum() / sizes[True], "current": now.sum() / sizes[False]}
        for kind, rows, a, b in (
            ("new", now, shares["reference"], shares["current"]),
            ("vanished", was, shares["current"], shares["reference"]),
        ):
            if rows.sum() >= FEWEST and a < RARE * b:
                own = np.flatnonzero(rows)
                near = heap.origin[own[np.argsort(far[own])[:EXAMPLES]]]
                about = {k: float(v) for k, v in shares.items()}
                found[kind].append({"cluster": c, **about, "examples": near.tolist()})
    return found


def score(
    reference: Array,
    current: Array,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare (N, D) with (M, D). ``statistic`` is Pearson's chi-square of the table.

    ``details``: ``shares`` by cluster (reference, current), ``new`` and ``vanished`` concepts.

    Raises:
        HeadwaterError: fewer than 8 rows on a side, unequal widths, values not finite.
    """
    sides = check(reference, current, LEAST)
    heap = pile(sides, groups, LIMIT, rng)
    z, about = components(heap.rows, DIMENSIONS), heap.about(permutations)
    if not z.shape[1]:
        empty: dict[str, Any] = {"clusters": 1, "shares": [[1.0, 1.0]], "new": [], "vanished": []}
        return Score(0.0, 1.0, len(sides[1]), {**about, **empty})
    label, far = clusters(z, rng)
    onehot = np.eye(int(label.max()) + 1)[label]  # (N, K)
    observed, p = test(heap, lambda marks: chi_square(onehot, marks), rng, permutations)
    first = heap.truth == 1
    shares = np.stack([onehot[first].mean(axis=0), onehot[~first].mean(axis=0)], axis=1)
    named = {"clusters": onehot.shape[1], "shares": shares.tolist(), **concepts(heap, label, far)}
    return Score(observed, p, len(sides[1]), {**about, **named})
