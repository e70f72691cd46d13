"""Near duplicates: re-encodings, resizes and light edits of one picture.

Two witnesses must agree. Features of a trained network forgive exactly what re-encoding and
resizing change, but also what they were trained to ignore: another skin tone or a recoloured
sign can score as high. The perceptual hash (pHash: signs of the low DCT frequencies of the
grey 32x32 image) is blind to that meaning but sees layout; alone it confuses flat pictures such
as flags of equal layout. Their mistakes differ, so the conjunction is precise while a true
copy passes both. Components of the agreeing pairs are the duplicate groups, as in the
self-deduplication of DINOv2 (arXiv 2304.07193).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Curate
from ..types import Array
from ._union import Pairs, drop, duplicate_groups

REASON = "duplicate-near"
BLOCK = 256  # queries at a time: bounds the pairs held when very many images are alike
EXACT_UP_TO = 200_000  # rows; above, cells of an inverted file are searched instead of all pairs
PROBES = 16


def normalise(features: Array) -> Array:
    """Unit rows (N, D); a zero row stays zero and so resembles nothing."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def phash_bits(phashes: pd.Series) -> NDArray[np.uint64]:
    """16 hex characters each -> (N,) uint64."""
    return np.array([int(p, 16) for p in phashes], dtype=np.uint64)


def _index(unit: Array, seed: int) -> Any:
    import faiss

    index: Any = faiss.IndexFlatIP(unit.shape[1])
    if len(unit) > EXACT_UP_TO:
        cells, flat = int(4 * np.sqrt(len(unit))), index
        index = faiss.IndexIVFFlat(flat, unit.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.min_points_per_centroid, index.nprobe = seed + 1, 1, PROBES
        index.train(unit)
    index.add(unit)
    return index


def similar(unit: Array, cosine: float, seed: int) -> Iterator[Pairs]:
    """Pairs i < j of unit rows with inner product >= ``cosine``, in blocks of (P, 2).

    A range search, not k neighbours: a picture copied more than k times stays one group.
    """
    index = _index(unit, seed)
    radius = float(np.nextafter(np.float32(cosine), np.float32(-1)))  # faiss compares with >
    for start in range(0, len(unit), BLOCK):
        limits, _, found = index.range_search(unit[start : start + BLOCK], radius)
        counts = np.diff(limits.astype(np.int64))
        queries = start + np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        pairs = np.stack([queries, found], axis=1)
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def near_pairs(unit: Array, bits: NDArray[np.uint64], cfg: Curate, seed: int) -> Pairs:
    """Pairs (P, 2) on which both witnesses agree."""
    agreed = [np.empty((0, 2), dtype=np.int64)]
    for pairs in similar(unit, cfg.near_cosine, seed):
        distance = np.bitwise_count(bits[pairs[:, 0]] ^ bits[pairs[:, 1]])
        agreed.append(pairs[distance <= cfg.near_hamming])
    return np.concatenate(agreed)


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Keep the best row of each group of near duplicates (see ``_union.drop``)."""
    frame = frame.copy()
    alive = frame["keep"].to_numpy(dtype=bool)
    rows = np.flatnonzero(alive)
    if len(rows):
        bits = phash_bits(frame["phash"].iloc[rows])
        pairs = rows[near_pairs(normalise(features[rows]), bits, cfg, seed)]
        frame["dup_group"] = duplicate_groups(frame, pairs)
    return drop(frame, alive, REASON)
