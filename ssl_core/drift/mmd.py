"""Maximum mean discrepancy with a permutation test (Gretton et al., JMLR 2012).

The unbiased estimate MMD2_u with the Gaussian kernel exp(-d^2 / (2 s^2)); s is the median
pairwise distance of the *pooled* sample. Pooling keeps the kernel the same for every
relabelling, which the level of the test rests on.

Where both sides hold more rows than one kernel matrix should, they are cut into blocks and the
estimates of the blocks are averaged (B-test, arXiv 1307.1954): time and memory grow linearly.
Rows are then relabelled within their block. Of the larger side, so many rows are drawn as balance
the smaller one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..types import Array, Score
from ._common import Groups, Matrix, Pile, Rows, check, codes, pile, sizes, test

SEES = "features"
BLOCK = 1000  # rows of one kernel matrix
MOST = 20_000  # rows in all
LEAST = 2


def squared_distances(x: Matrix) -> Matrix:
    """(N, D) -> (N, N), zero on the diagonal."""
    x = x - x.mean(axis=0)  # smaller numbers cancel less
    norms = np.einsum("nd,nd->n", x, x)
    squared: Matrix = np.maximum(norms[:, None] + norms[None, :] - 2 * x @ x.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def bandwidth(squared: Matrix) -> float:
    """Median pairwise distance, from squared distances (N, N)."""
    pairs = squared[np.triu_indices(len(squared), 1)]
    middle = float(np.median(pairs))
    if middle <= 0:  # most rows are equal: the median says nothing about the rest
        middle = float(pairs.mean()) or 1.0
    return float(middle**0.5)


def mmd2(gram: Matrix, marks: Matrix) -> Matrix:
    """Unbiased MMD^2 (P,) for each relabelling: ``marks`` (N, P) is 1 on the reference rows.

    Needs one matrix product for all relabellings; may be negative.
    """
    off = gram - np.diag(np.diag(gram))  # the unbiased estimate leaves out i = j
    n = marks.sum(axis=0)  # differs between relabellings where units differ in size
    m = len(marks) - n
    to_reference = off @ marks  # (N, N) @ (N, P) -> (N, P)
    xx = np.einsum("np,np->p", marks, to_reference)
    xy = to_reference.sum(axis=0) - xx
    yy = off.sum() - xx - 2 * xy
    pairs_x, pairs_y = np.maximum(n * (n - 1), 1), np.maximum(m * (m - 1), 1)
    result: Matrix = xx / pairs_x + yy / pairs_y - 2 * xy / np.maximum(n * m, 1)
    return result


def count_blocks(pair: tuple[Matrix, Matrix], groups: Groups | None) -> int:
    """As many blocks as both sides can fill by halves: more would tear the smaller side apart,
    and most of what it says lies in the pairs of its rows."""
    units, size = sizes(codes(pair, groups))
    return max(1, min(MOST, 2 * int(min(units) * size)) // BLOCK)


def deal(heap: Pile, count: int, rng: np.random.Generator) -> Pile:
    """Deal the units of both sides out evenly over ``count`` blocks."""
    stratum = np.zeros(len(heap.first), np.int64)
    for side in (heap.first, ~heap.first):
        own = rng.permutation(np.flatnonzero(side))
        stratum[own] = np.arange(len(own)) % count
    return replace(heap, stratum=stratum)


def kernels(heap: Pile) -> tuple[list[tuple[Rows, Matrix]], float]:
    """Each block's rows and kernel matrix; and the bandwidth, which all share."""
    of_row = heap.stratum[heap.unit]
    parts = [np.flatnonzero(of_row == s) for s in range(int(of_row.max()) + 1)]
    squared = [squared_distances(heap.rows[rows]) for rows in parts]
    width = float(np.mean([bandwidth(s) for s in squared]))
    grams = [np.exp(-s / (2 * width**2)) for s in squared]
    return list(zip(parts, grams, strict=True)), width


def score(
    reference: Array,
    current: Array,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare (N, D) with (M, D), in blocks of at most about ``BLOCK`` rows.

    Raises:
        HeadwaterError: fewer than 2 rows on a side, unequal widths, values not finite.
    """
    sides = check(reference, current, LEAST)
    count = count_blocks(sides, groups)
    heap = deal(pile(sides, groups, count * BLOCK, rng), count, rng)
    parts, width = kernels(heap)

    def statistic(marks: Matrix) -> Matrix:
        values = [mmd2(gram, marks[rows]) for rows, gram in parts]
        result: Matrix = np.mean(values, axis=0)
        return result

    observed, p = test(heap, statistic, rng, permutations)
    details = {**heap.about(permutations), "bandwidth": width, "blocks": len(parts)}
    return Score(observed, p, len(sides[1]), details)
