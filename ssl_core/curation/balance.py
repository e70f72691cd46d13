"""Balance: what there is most of is cut first.

One level of the balanced sampling of arXiv 2405.15613: k-means in the seed features of the
training images, then water-filling: every cluster may keep up to x images, with x such that the
kept images add up to the target.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Curate
from ..types import Array
from .near import normalise

NEEDS_SPLIT = True
REASON = "balance"
ITERATIONS = 25
Ints = NDArray[np.int64]


def water_fill(sizes: Ints, target: int, rng: np.random.Generator) -> Ints:
    """How many to keep of each cluster, (C,) -> (C,): ``min(size, level)``, exactly ``target``.

    The level is the greatest integer that does not exceed the target; what is missing goes, one
    each, to clusters drawn at random among those that still have more.
    """
    target = min(target, int(sizes.sum()))
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        level = (low + high + 1) // 2
        if int(np.minimum(sizes, level).sum()) <= target:
            low = level
        else:
            high = level - 1
    kept = np.minimum(sizes, low)
    taller = np.flatnonzero(sizes > low)
    kept[rng.permutation(taller)[: target - int(kept.sum())]] += 1
    return kept


def cluster(unit: Array, count: int, seed: int) -> Array:
    """Spherical k-means centroids (C, D) of unit rows (N, D); C = min(count, N). Seeded."""
    import faiss

    # faiss' own minimum of 39 points per centroid only warns; small sets are legitimate here.
    means = faiss.Kmeans(
        unit.shape[1],
        min(count, len(unit)),
        niter=ITERATIONS,
        seed=seed + 1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=1024,
        # Random starting points would fall into the largest mass and miss what is rare.
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    means.train(unit)
    return np.asarray(means.centroids, dtype=np.float32)


def _lottery(shas: pd.Series, seed: int) -> list[str]:
    return [hashlib.sha256(f"balance:{seed}:{sha}".encode()).hexdigest() for sha in shas]


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Keep ``cfg.keep`` of the kept training rows; every row learns its cluster.

    Within a cluster chance decides, not nearness to the centroid, which would drop the unusual
    images that balancing is meant to favour. The draw is a hash of the image's own sha256, so
    it does not depend on row order and a surviving image tends to survive as data grows. Test
    rows do not shape the clusters and are never cut.
    """
    import faiss

    frame = frame.copy()
    pool = (frame["keep"] & (frame["split"] == "train")).to_numpy(dtype=bool)
    if not pool.any():
        return frame
    unit = normalise(features)
    nearest = faiss.IndexFlatIP(unit.shape[1])
    nearest.add(cluster(unit[pool], cfg.clusters, seed))
    frame["cluster"] = nearest.search(unit, 1)[1][:, 0].astype(np.int64)  # (N, 1) -> (N,)

    rows = frame.loc[pool, ["cluster", "sha256", "path"]]
    sizes = np.bincount(rows["cluster"]).astype(np.int64)
    kept = water_fill(sizes, round(cfg.keep * len(rows)), np.random.default_rng(seed))
    drawn = rows.assign(ticket=_lottery(rows["sha256"], seed)).sort_values(["ticket", "path"])
    place = drawn.groupby("cluster").cumcount()
    cut = drawn.index[place.to_numpy() >= kept[drawn["cluster"]]]
    frame.loc[cut, "keep"] = False
    frame.loc[cut, "reason"] = REASON
    return frame
