"""Seed features as unit vectors, pHashes as integers, and k-means over them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..types import Array

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
BLOCK = 65_536  # rows
SEARCHED = 512  # rows whose nearest centres are sought at a time: their products stay in cache
ITERATIONS = 20
PER_CENTRE = 1024  # rows that k-means learns from, per centroid
# pHash: sign of 8x8 cosine frequencies, rows first. A mirror negates the odd horizontal ones.
MIRROR = np.uint64(0x5555555555555555)


def normalise(features: Array, rows: Ints | None = None) -> Array:
    """Unit rows (N, D), or of some rows (n, D); a zero row stays zero and so resembles nothing.

    By blocks: ``features`` may be a file mapped into memory, of which one float32 copy is made.
    """
    count = len(features) if rows is None else len(rows)
    unit = np.empty((count, features.shape[1]), dtype=np.float32)
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        part = np.asarray(features[block if rows is None else rows[block]], dtype=np.float32)
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        unit[block] = part / np.maximum(norms, 1e-12)
    return unit


def phash_bits(phashes: pd.Series) -> Bits:
    """16 hex characters each -> (N,) uint64."""
    return np.frombuffer(bytes.fromhex("".join(phashes.tolist())), dtype=">u8").astype(np.uint64)


def kmeans(
    points: Array,
    count: int,
    seed: int,
    *,
    spherical: bool = True,
    iterations: int = ITERATIONS,
    per_centre: int = PER_CENTRE,
    rows: Ints | None = None,
) -> Array:
    """Centroids (C, D) of points (N, D), or of some ``rows``; C = min(count, N), k-means++ start.

    Learns from at most ``per_centre`` points per centroid, drawn by the seed.
    """
    import faiss

    total = len(points) if rows is None else len(rows)
    if total > per_centre * count:
        drawn = np.random.default_rng(seed).choice(total, per_centre * count, replace=False)
        rows = np.sort(drawn) if rows is None else rows[np.sort(drawn)]
    points = points if rows is None else points[rows]
    # faiss' own minimum of 39 points per centroid only warns; small sets are legitimate here.
    means = faiss.Kmeans(
        points.shape[1],
        min(count, len(points)),
        niter=iterations,
        seed=seed + 1,
        spherical=spherical,
        min_points_per_centroid=1,
        max_points_per_centroid=per_centre,
        # Random starting points would fall into the largest mass and miss what is rare.
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    means.train(np.ascontiguousarray(points, dtype=np.float32))
    return np.asarray(means.centroids, dtype=np.float32)


def assign(points: Array, centres: Array, spherical: bool = True) -> Ints:
    """Nearest centre of each point, by inner product or by distance: (N, D), (C, D) -> (N,)."""
    return nearest(points, centres, 1, spherical)[:, 0]  # (N, 1) -> (N,)


def nearest(points: Array, centres: Array, count: int, spherical: bool = True) -> Ints:
    """The ``count`` nearest centres of each point, nearest first: (N, D), (C, D) -> (N, count).

    One matrix product and its largest entries, a part at a time that stays in the cache: for few
    neighbours among some thousands a quarter of the time of an index of faiss.
    """
    # The nearest by |x - c|^2 = |x|^2 - 2 (xc - |c|^2 / 2) is the largest bracket.
    away = None if spherical else np.square(centres).sum(axis=1) / 2
    found = np.empty((len(points), count), dtype=np.int64)
    for start in range(0, len(points), SEARCHED):
        rows = np.asarray(points[start : start + SEARCHED], dtype=np.float32)
        likeness = rows @ centres.T  # (B, D) -> (B, C)
        if away is not None:
            likeness -= away
        at = np.arange(len(rows))
        for k in range(count):
            best = likeness.argmax(axis=1)
            found[start + at, k] = best
            likeness[at, best] = -np.inf
    return found


def members(labels: Ints, count: int) -> list[Ints]:
    """Positions of each label 0..count-1, ascending: (N,) -> count arrays."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))
