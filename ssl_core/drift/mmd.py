"""Maximum mean discrepancy with a permutation test (Gretton et al., JMLR 2012).

The unbiased estimate MMD2_u with the Gaussian kernel exp(-d^2 / (2 s^2)); s is the median
pairwise distance of the *pooled* sample. Pooling keeps the kernel the same for every
relabelling, which the level of the test rests on.
"""

from __future__ import annotations

import numpy as np

from ..types import Array, Score
from ._common import Matrix, check, p_value, relabellings, subsample

LIMIT = 1000  # rows in all: the kernel matrix is LIMIT^2
LEAST = 2


def squared_distances(x: Matrix) -> Matrix:
    """(N, D) -> (N, N), zero on the diagonal."""
    x = x - x.mean(axis=0)  # smaller numbers cancel less
    norms = np.einsum("nd,nd->n", x, x)
    squared: Matrix = np.maximum(norms[:, None] + norms[None, :] - 2 * x @ x.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def kernel(pooled: Matrix) -> tuple[Matrix, float]:
    """Gaussian kernel matrix (N, N) of the pooled sample, and its bandwidth."""
    squared = squared_distances(pooled)
    pairs = squared[np.triu_indices(len(pooled), 1)]
    middle = float(np.median(pairs))
    if middle <= 0:  # most rows are equal: the median says nothing about the rest
        middle = float(pairs.mean()) or 1.0
    return np.exp(-squared / (2 * middle)), middle**0.5


def mmd2(gram: Matrix, marks: Matrix) -> Matrix:
    """Unbiased MMD^2 (P,) for each relabelling: ``marks`` (N, P) is 1 on the reference rows.

    Needs one matrix product for all relabellings; may be negative.
    """
    off = gram - np.diag(np.diag(gram))  # the unbiased estimate leaves out i = j
    n = marks[:, 0].sum()
    m = len(marks) - n
    to_reference = off @ marks  # (N, N) @ (N, P) -> (N, P)
    xx = np.einsum("np,np->p", marks, to_reference)
    xy = to_reference.sum(axis=0) - xx
    yy = off.sum() - xx - 2 * xy
    result: Matrix = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    return result


def score(reference: Array, current: Array, rng: np.random.Generator, permutations: int) -> Score:
    """Compare (N, D) with (M, D); more than ``LIMIT`` rows in all are subsampled.

    Raises:
        HeadwaterError: fewer than 2 rows on a side, unequal widths, values not finite.
    """
    sides = check(reference, current, LEAST)
    x, y = subsample(*sides, LIMIT, rng)
    gram, bandwidth = kernel(np.concatenate([x, y]))
    truth = np.r_[np.ones(len(x)), np.zeros(len(y))][:, None]
    marks = relabellings(len(x), len(gram), permutations, rng)
    observed, *permuted = mmd2(gram, np.concatenate([truth, marks], axis=1))
    details = {
        "bandwidth": bandwidth,
        "reference_rows": len(x),
        "current_rows": len(y),
        "subsampled": len(x) + len(y) < sum(len(s) for s in sides),
        "permutations": permutations,
    }
    p = p_value(float(observed), np.asarray(permuted))
    return Score(float(observed), p, len(y), details)
