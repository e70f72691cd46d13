"""Temperature: a cluster of n images gets a share like n^(1/T), between nature and balance.

As languages are sampled for multilingual models: T = 1 keeps shares as they are, a large T makes
all clusters equal. Labels may stand for clusters where they are known.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..config import Curate
from ..types import Array
from ._share import cut, tempered
from ._vectors import assign, kmeans, normalise

NEEDS_SPLIT = True
REASON = "temperature"


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Keep ``cfg.keep`` of the kept training rows.

    With ``cfg.by_label`` a labelled row's cluster is its label, and the clusters of the others
    are numbered after the labels.
    """
    frame = frame.copy()
    pool = (frame["keep"] & (frame["split"] == "train")).to_numpy(dtype=bool)
    if not pool.any():
        return frame
    unit = normalise(features)
    frame["cluster"] = assign(unit, kmeans(unit, cfg.clusters, seed, rows=np.flatnonzero(pool)))
    if cfg.by_label:
        labels = pd.Categorical(frame["label"])  # codes by name, -1 for none
        own = frame["cluster"] + len(labels.categories)
        frame["cluster"] = np.where(labels.codes >= 0, labels.codes, own).astype(np.int64)
    sizes = np.bincount(frame.loc[pool, "cluster"])
    target = round(cfg.keep * int(pool.sum()))
    quota = tempered(sizes, target, cfg.temperature, np.random.default_rng(seed))
    return cut(frame, pool, quota, seed, REASON)
