"""Fréchet distance between Gaussians, with shrinkage and a permutation test.

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Dowson & Landau 1982; the FID of arXiv 1706.08500) on
whitened principal components of the pooled sample, where |m1 - m2| is the Mahalanobis distance
and the covariance of both samples together is the identity: what each estimate is shrunk to.
"""

from __future__ import annotations

import numpy as np

from ..types import Array, Score
from ._common import LIMIT, Groups, Matrix, check, components, pile, test

SEES = "features"
LEAST = 4
DIMENSIONS = 16  # a covariance of more has too many entries for a day's images


def moments(z: Matrix, marks: Matrix) -> tuple[Matrix, Matrix]:
    """Means (P, K) and shrunk covariances (P, K, K) of the rows under ``marks`` (N, P)."""
    n, k = marks.sum(axis=0), z.shape[1]
    upper = np.triu_indices(k)
    products = z[:, upper[0]] * z[:, upper[1]]  # (N, K(K+1)/2)
    mean = (marks.T @ z) / n[:, None]  # (P, N) @ (N, K) -> (P, K)
    second = np.zeros((len(n), k, k))
    second[:, upper[0], upper[1]] = (marks.T @ products) / n[:, None]
    second[:, upper[1], upper[0]] = second[:, upper[0], upper[1]]
    covariance = second - mean[:, :, None] * mean[:, None, :]
    weight = (k / (k + n))[:, None, None]  # of the identity: much where rows are few
    return mean, (1 - weight) * covariance + weight * np.eye(k)


def distance(z: Matrix, marks: Matrix) -> Matrix:
    """Squared Fréchet distance (P,) for each relabelling ``marks`` (N, P)."""
    (m1, s1), (m2, s2) = moments(z, marks), moments(z, 1 - marks)
    root = np.linalg.cholesky(s1)
    inner = root.transpose(0, 2, 1) @ s2 @ root  # has the eigenvalues of S1 S2
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(inner), 0)).sum(axis=1)
    traces = np.trace(s1 + s2, axis1=1, axis2=2)
    result: Matrix = ((m1 - m2) ** 2).sum(axis=1) + traces - 2 * cross
    return result


def score(
    reference: Array,
    current: Array,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare (N, D) with (M, D). ``statistic`` is the squared distance.

    Raises:
        HeadwaterError: fewer than 4 rows on a side, unequal widths, values not finite.
    """
    sides = check(reference, current, LEAST)
    heap = pile(sides, groups, LIMIT, rng)
    z = components(heap.rows, DIMENSIONS)
    about = {**heap.about(permutations), "dimensions": z.shape[1]}
    if not z.shape[1]:
        return Score(0.0, 1.0, len(sides[1]), {**about, "mahalanobis": 0.0})
    observed, p = test(heap, lambda marks: distance(z, marks), rng, permutations)
    truth = heap.truth == 1
    gap = z[truth].mean(axis=0) - z[~truth].mean(axis=0)
    return Score(observed, p, len(sides[1]), {**about, "mahalanobis": float(np.sum(gap**2) ** 0.5)})
