"""How many images each cluster may keep, and which ones."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ._vectors import Ints

STEPS = 100  # of a bisection over floats


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


def tempered(sizes: Ints, target: int, temperature: float, rng: np.random.Generator) -> Ints:
    """How many to keep of each cluster, (C,) -> (C,): min(size, c * size^(1/T)), ``target`` in all.

    T = 1 keeps the shares as they are; T without bound is water-filling. Fractions are rounded
    at random so that the sum is exact and each expectation right (systematic sampling).
    """
    target = min(target, int(sizes.sum()))
    wish = sizes.astype(np.float64) ** (1 / temperature)
    low, high = 0.0, float(sizes.max(initial=1))
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.minimum(sizes, middle * wish).sum() < target else (low, middle)
        )
    ideal = np.minimum(sizes, high * wish)
    order = rng.permutation(len(sizes))
    ends = np.round(np.cumsum(ideal[order]), 6)  # without the noise of adding
    ends[-1:] = target
    marks = np.floor(ends + rng.random() * (1 - 1e-9)).astype(np.int64)
    marks[-1:] = target
    kept = np.empty(len(sizes), dtype=np.int64)
    kept[order] = np.diff(marks, prepend=0)
    return kept


def lottery(shas: pd.Series, seed: int) -> list[str]:
    """A ticket for each image that depends on its content and the seed alone."""
    return [hashlib.sha256(f"balance:{seed}:{sha}".encode()).hexdigest() for sha in shas.tolist()]


def cut(
    frame: pd.DataFrame,
    pool: NDArray[np.bool_],
    quota: Ints,
    seed: int,
    reason: str,
    rank: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Keep ``quota[cluster]`` rows of each cluster of the pool; the least ``rank``, or by lottery.

    The lottery does not depend on row order, and a surviving image tends to survive as data
    grows. ``frame`` is changed: ``keep``, ``reason`` and ``detail``.
    """
    rows = frame.loc[pool, ["cluster", "sha256", "path"]]
    ticket = lottery(rows["sha256"], seed) if rank is None else rank
    drawn = rows.assign(ticket=ticket).sort_values(["ticket", "sha256", "path"])
    place = drawn.groupby("cluster").cumcount().to_numpy()
    lost = drawn[place >= quota[drawn["cluster"]]]
    sizes = np.bincount(rows["cluster"], minlength=len(quota))
    words = np.array([f"{k} of {n} kept in its cluster" for k, n in zip(quota, sizes, strict=True)])
    frame.loc[lost.index, "keep"] = False
    frame.loc[lost.index, "reason"] = reason
    frame.loc[lost.index, "detail"] = words[lost["cluster"]]
    return frame
