"""Near duplicates: re-encodings, resizes, light edits, crops and mirror images of one picture.

Which pairs are copies: ``_copies.py``. Components of such pairs are the duplicate groups, as in the
self-deduplication of DINOv2 (arXiv 2304.07193), and no group straddles the split.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..config import Curate
from ..types import Array
from ._copies import Limits, Look, Rows, find
from ._union import drop, duplicate_groups, label_codes
from ._vectors import normalise, phash_bits

NEEDS_PIXELS = True
REASON = "duplicate-near"


def apply(
    frame: pd.DataFrame, features: Array, cfg: Curate, seed: int, look: Look | None = None
) -> pd.DataFrame:
    """Keep the best row of each group of near duplicates (see ``_union.drop``)."""
    frame = frame.copy()
    alive = frame["keep"].to_numpy(dtype=bool)
    at = np.flatnonzero(alive)
    if len(at):
        rows = Rows(
            normalise(features, at),
            phash_bits(frame["phash"].iloc[at]),
            label_codes(frame["label"].iloc[at]),
        )
        limits = Limits(cfg.near_cosine, cfg.near_hamming, cfg.near_look, cfg.near_pixels)
        see = None if look is None else lambda chosen: look(at[chosen])
        frame["dup_group"] = duplicate_groups(frame, at[find(rows, limits, see, seed)])
    return drop(frame, alive, REASON)
