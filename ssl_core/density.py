"""How rare each image is: kernel density of features, for rwSAM (arXiv 2110.05025).

Gaussian kernel on unit features reduced by PCA, bandwidth by the median heuristic, each row left
out of its own density. Memory is bounded by ``CHUNK`` x ``ANCHORS``, whatever the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .types import Array

F64 = NDArray[np.float64]
DIMS = 32  # a kernel in hundreds of dimensions sees all points equally far
ANCHORS = 4096  # rows that stand for all in the sum over kernels
CHUNK = 1024
ROUNDING = 1e-12  # squared distances below it are of equal rows
MEDIAN_ROWS = 1024  # anchors whose distances give the bandwidth


def weights(features: Array, alpha: float, seed: int = 0) -> Array:
    """density^-alpha of each row, scaled to mean 1: (N, D) -> (N,) float32.

    A row in a place ten times as dense weighs 10^alpha times less; alpha 0 gives ones.

    Raises:
        ValueError: not (N, D), values not finite, or a negative alpha.
    """
    if alpha < 0:
        raise ValueError(f"alpha {alpha} must not be negative")
    if len(features) < 2 or not alpha:
        return np.ones(len(features), dtype=np.float32)
    exponent = -alpha * log_density(reduce(features), anchors=ANCHORS, seed=seed)
    raw = np.exp(exponent - exponent.max())  # at most 1: no overflow
    scaled: Array = (raw / raw.mean()).astype(np.float32)
    return scaled


def reduce(features: Array, dims: int = DIMS) -> F64:
    """Unit rows on their first principal axes: (N, D) -> (N, min(dims, D)).

    Raises:
        ValueError: not (N, D), or values not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"shape {features.shape} must be (N, D)")
    n, width = features.shape
    total, moment = np.zeros(width), np.zeros((width, width))
    for unit in _unit_chunks(features):
        total += unit.sum(axis=0)
        moment += unit.T @ unit
    mean = total / n
    _, axes = np.linalg.eigh(moment / n - np.outer(mean, mean))  # eigenvalues rise
    axes = axes[:, ::-1][:, :dims]  # (D, dims)
    return np.concatenate([(unit - mean) @ axes for unit in _unit_chunks(features)])


def _unit_chunks(features: Array) -> Iterator[F64]:
    for start in range(0, len(features), CHUNK):
        part = np.asarray(features[start : start + CHUNK], dtype=np.float64)
        if not np.isfinite(part).all():
            raise ValueError("features must be finite")
        yield part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)


def squared_distances(x: F64, y: F64) -> F64:
    """(N, d), (M, d) -> (N, M)."""
    norms = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("md,md->m", y, y)
    found: F64 = np.maximum(norms - 2 * x @ y.T, 0)
    return found


def bandwidth(points: F64) -> float:
    """Median pairwise distance of (N, d); of copies the mean instead, 1 if all are equal."""
    pairs = squared_distances(points, points)[np.triu_indices(len(points), 1)]
    candidates = (float(np.median(pairs)), float(pairs.mean()), 1.0)
    return math.sqrt(next(v for v in candidates if v > ROUNDING))


def log_density(points: F64, anchors: int, seed: int, width: float | None = None) -> F64:
    """Log of the mean kernel exp(-d^2 / (2 width^2)) over the other anchors: (N, d) -> (N,).

    At most ``anchors`` rows, drawn by ``seed``, stand for all; ``width`` None: :func:`bandwidth`.
    The kernel's constant factor is left out: it is the same for all rows.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(points))[:anchors])
    base = points[rows]
    h = bandwidth(base[:: -(-len(base) // MEDIAN_ROWS)]) if width is None else width
    own = np.full(len(points), -1)
    own[rows] = np.arange(len(rows))  # each anchor's column
    found = np.empty(len(points))
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        found[part] = _log_mean_kernel(points[part], base, own[part], h)
    return found


def _log_mean_kernel(points: F64, anchors: F64, own: NDArray[np.int64], h: float) -> F64:
    """(C, d), (M, d) -> (C,); ``own`` (C,) is the column to leave out, -1 for none."""
    exponents = squared_distances(points, anchors) / (-2 * h * h)  # (C, M)
    mine = np.flatnonzero(own >= 0)
    exponents[mine, own[mine]] = -np.inf
    top = exponents.max(axis=1, keepdims=True)
    sums = np.exp(exponents - top).sum(axis=1)
    found: F64 = top[:, 0] + np.log(sums) - np.log(len(anchors) - (own >= 0))
    return found
