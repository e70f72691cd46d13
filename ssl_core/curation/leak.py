"""Leaks: training images that the evaluation split shows too.

``exact`` and ``near`` already keep groups of copies on one side of the split. What they miss,
because they must be right to merge groups, this step looks for with looser limits, and takes the
*training* image: a wrong guess costs one training image, a missed one the honesty of every figure.
Merging groups instead would let loose limits chain many groups into one, and move images of the
test split whenever data grows. The test split is never touched. DINOv2 (arXiv 2304.07193) does
the same with its pool, by a cosine of copy detection features alone; with features that were not
trained for that, look-alikes of one class score as high, so pixels must agree here too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Curate
from ..types import Array
from ._copies import Limits, Look, Rows, find
from ._union import components, label_codes, same
from ._vectors import Ints, normalise, phash_bits
from ._verdict import drop

NEEDS_SPLIT = True
NEEDS_PIXELS = True
REASON = "leak"
# Looser than ``near``: bits more, and a share of the pixels' agreement less.
MORE_BITS = 2
LESS_AGREEMENT = 0.15


def apply(
    frame: pd.DataFrame, features: Array, cfg: Curate, seed: int, look: Look | None = None
) -> pd.DataFrame:
    """Drop kept training rows that copy a kept test row; ``dup_of`` names that one."""
    frame = frame.copy()
    at = np.flatnonzero(frame["keep"])
    test = (frame["split"].iloc[at] == "test").to_numpy(dtype=bool)
    if test.all() or not test.any():
        return frame
    named, pairs = _across(frame.iloc[at], features, test, at, cfg, seed, look)
    if not len(pairs):
        return frame
    roots = components(len(at), pairs)  # bipartite: each training row in it has a test neighbour
    shas = frame["sha256"].iloc[at]
    least = shas[test].groupby(roots[test]).min()
    leaks = ~test & np.isin(roots, least.index)
    words = np.where(named[leaks], "same bytes as a test image", "copy of a test image")
    copied = least.reindex(roots[leaks]).to_numpy()
    return drop(frame, at[leaks], REASON, words.tolist(), copied)


def _across(
    rows: pd.DataFrame,
    features: Array,
    test: NDArray[np.bool_],
    at: Ints,
    cfg: Curate,
    seed: int,
    look: Look | None,
) -> tuple[NDArray[np.bool_], Ints]:
    """Whether each row shares its bytes with the other side (N,), and all pairs across (P, 2)."""
    equal = same(rows["sha256"])
    equal = equal[test[equal[:, 0]] != test[equal[:, 1]]]
    named = np.isin(np.arange(len(rows)), equal)
    limits = Limits(
        cfg.near_cosine,
        cfg.near_hamming + MORE_BITS,
        cfg.near_look,
        cfg.near_pixels - LESS_AGREEMENT,
    )
    unit = normalise(features, at)
    known = Rows(unit, phash_bits(rows["phash"]), label_codes(rows["label"]), test)
    see = None if look is None else lambda chosen: look(at[chosen])
    return named, np.concatenate([equal, find(known, limits, see, seed)])
