"""Seed features as unit vectors, pHashes as integers, and k-means over them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..types import Array

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
BLOCK = 65_536  # rows
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
    import faiss

    kind = faiss.IndexFlatIP if spherical else faiss.IndexFlatL2
    index = kind(points.shape[1])
    index.add(np.ascontiguousarray(centres, dtype=np.float32))
    found = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), BLOCK):
        rows = np.ascontiguousarray(points[start : start + BLOCK], dtype=np.float32)
        found[start : start + BLOCK] = index.search(rows, 1)[1][:, 0]  # (B, 1) -> (B,)
    return found


def members(labels: Ints, count: int) -> list[Ints]:
    """Positions of each label 0..count-1, ascending: (N,) -> count arrays."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))
