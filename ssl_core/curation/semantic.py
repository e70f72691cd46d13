"""Semantic duplicates: SemDeDup (arXiv 2303.09540).

Spherical k-means; within a cluster, images come in the order of their distance to the centroid, and
one goes if an earlier one has a cosine above 1 - epsilon. Not greedy: an image that has gone
still takes others with it, so that what is kept at a small epsilon holds what is kept at a
larger one. Images of different clusters are never compared.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Curate
from ..errors import HeadwaterError
from ..types import Array
from ._cells import partition
from ._share import lottery
from ._vectors import Ints, members, normalise
from ._verdict import drop

NEEDS_SPLIT = True
REASON = "semantic"
# Images per cluster on average (the paper: 8,800). So many whatever N is, and comparing is linear.
CLUSTER = 1000
BLOCK = 1024  # rows compared at a time
TOLERANCE = 1e-6  # float32 cosines of equal rows: at epsilon 0 they are above 1 - epsilon too


def strongest(unit: Array) -> tuple[Array, Ints]:
    """Of each row, the largest cosine with an earlier one, and which: (N, D) -> (N,), (N,).

    The first row has none: -inf and itself.
    """
    best, where = np.full(len(unit), -np.inf, dtype=np.float32), np.arange(len(unit))
    for start in range(0, len(unit), BLOCK):
        rows = unit[start : start + BLOCK]
        cosines = rows @ unit[: start + len(rows)].T  # (B, start + B)
        own = np.arange(len(rows))
        cosines[:, start:][own[:, None] <= own] = -np.inf  # itself and later ones
        top = cosines.argmax(axis=1)
        best[start : start + len(rows)] = cosines[own, top]
        earlier = start + own > 0
        where[start : start + len(rows)][earlier] = top[earlier]
    return best, where


def greedy(unit: Array, least: float) -> tuple[NDArray[np.bool_], Array, Ints]:
    """Rows that go, and as :func:`strongest` why; only rows that stay take others with them."""
    gone = np.zeros(len(unit), dtype=bool)
    best, where = np.full(len(unit), -np.inf, dtype=np.float32), np.arange(len(unit))
    for i in range(len(unit)):
        if gone[i]:
            continue
        cosines = unit[i + 1 :] @ unit[i]
        new = (cosines > least) & ~gone[i + 1 :]
        rows = i + 1 + np.flatnonzero(new)
        gone[rows], best[rows], where[rows] = True, cosines[new], i
    return gone, best, where


def _order(frame: pd.DataFrame, distance: Array, prefer: str, seed: int) -> Ints:
    """Positions (N,) by cluster, then what is preferred, then content: never by row order."""
    if prefer == "random":
        first = np.argsort(np.argsort(np.array(lottery(frame["sha256"], seed)))).astype(float)
    else:
        first = distance.astype(float) * (-1 if prefer == "hard" else 1)
    table = frame[["cluster", "sha256", "path"]].assign(first=first, at=np.arange(len(frame)))
    ranked = table.sort_values(["cluster", "first", "sha256", "path"])
    return ranked["at"].to_numpy(dtype=np.int64)


def _found(
    unit: Array, order: Ints, labels: Ints, cfg: Curate
) -> tuple[NDArray[np.bool_], Array, Ints]:
    """Rows that go, their cosine and its partner, in terms of ``unit``'s rows: (N,) each."""
    how = cfg.semantic
    gone = np.zeros(len(unit), dtype=bool)
    best, partner = np.full(len(unit), -np.inf, dtype=np.float32), np.arange(len(unit))
    least = 1 - how.epsilon - TOLERANCE
    for own in members(labels[order], int(labels.max()) + 1):
        rows = order[own]
        if how.greedy:
            gone[rows], best[rows], where = greedy(unit[rows], least)
        else:
            best[rows], where = strongest(unit[rows])
        partner[rows] = rows[where]
    if not how.greedy:
        gone = best > least if how.keep is None else _most(best, order, how.keep)
    return gone, best, partner


def _most(best: Array, order: Ints, keep: float) -> NDArray[np.bool_]:
    """The rows with the largest cosines, so many that the share ``keep`` stays."""
    gone = np.zeros(len(best), dtype=bool)
    count = len(best) - max(1, round(keep * len(best)))
    ranked = order[np.argsort(-best[order], kind="stable")]
    gone[ranked[:count]] = True
    return gone & np.isfinite(best)  # the first of a cluster always stays


def _survivor(gone: NDArray[np.bool_], partner: Ints) -> Ints:
    """Follow partners to a row that stays: (N,) -> (N,)."""
    found = np.where(gone, partner, np.arange(len(gone)))
    while gone[found].any():
        found = found[found]
    return found


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Drop semantic duplicates among the kept training rows; ``dup_of`` is one that stays.

    Raises:
        HeadwaterError: a share to keep and greedy mode, which needs epsilon.
    """
    if cfg.semantic.greedy and cfg.semantic.keep is not None:
        rule = "greedy mode needs epsilon: the share that it keeps is not known beforehand"
        raise HeadwaterError("curate.semantic", rule, "remove keep, or set greedy: false")
    frame = frame.copy()
    pool = (frame["keep"] & (frame["split"] == "train")).to_numpy(dtype=bool)
    if not pool.any():
        return frame
    unit = normalise(features, np.flatnonzero(pool))
    homes, centres = partition(unit, CLUSTER, 1, seed)
    labels = homes[:, 0]
    distance = 1 - np.einsum("nd,nd->n", unit, centres[labels])
    rows = frame.loc[pool].assign(cluster=labels)
    order = _order(rows, distance, cfg.semantic.prefer, seed)
    gone, best, partner = _found(unit, order, labels, cfg)
    keepers = rows["sha256"].to_numpy()[_survivor(gone, partner)[gone]]
    frame.loc[rows.index, "cluster"] = labels
    words = [f"cosine {c:.3f} with an earlier one of its cluster" for c in best[gone]]
    return drop(frame, np.flatnonzero(pool)[gone], REASON, words, keepers)
