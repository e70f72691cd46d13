"""Balance: what there is most of is cut first.

One level of the balanced sampling of arXiv 2405.15613: k-means in the seed features of the
training images, then water-filling: every cluster may keep up to x images, with x such that the
kept images add up to the target.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..config import Curate
from ..types import Array
from ._share import cut, water_fill
from ._vectors import assign, kmeans, normalise

NEEDS_SPLIT = True
REASON = "balance"
ITERATIONS = 25


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Keep ``cfg.keep`` of the kept training rows; every row learns its cluster.

    Within a cluster chance decides, not nearness to the centroid, which would drop the unusual
    images that balancing is meant to favour. Test rows do not shape the clusters and are never
    cut.
    """
    frame = frame.copy()
    pool = (frame["keep"] & (frame["split"] == "train")).to_numpy(dtype=bool)
    if not pool.any():
        return frame
    unit = normalise(features)
    centres = kmeans(
        unit,
        cfg.clusters,
        seed,
        iterations=ITERATIONS,
        rows=np.flatnonzero(pool),
    )
    frame["cluster"] = assign(unit, centres)
    sizes = np.bincount(frame.loc[pool, "cluster"], minlength=len(centres))
    target = round(cfg.keep * int(pool.sum()))
    quota = water_fill(sizes, target, np.random.default_rng(seed))
    return cut(frame, pool, quota, seed, REASON)
