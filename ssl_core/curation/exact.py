"""Exact duplicates: the same file bytes. Equal pixels in other bytes are ``near``'s business."""

from __future__ import annotations

import pandas as pd

from ..config import Curate
from ..types import Array
from ._union import drop, duplicate_groups, same

REASON = "duplicate-exact"


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Keep one row of each sha256; the labelled one if there is one. ``features`` are not used."""
    frame = frame.copy()
    alive = frame["keep"].to_numpy(dtype=bool)
    frame["dup_group"] = duplicate_groups(frame, same(frame["sha256"].where(alive)))
    return drop(frame, alive, REASON)
