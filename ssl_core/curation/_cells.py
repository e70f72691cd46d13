"""Overlapping cells: rows that resemble each other share one, and no cell grows with N.

So the search for pairs is near-linear: about N / CELL cells, each compared with itself. A row
lives in the cells of its two nearest centres; a pair is missed only if it shares neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..types import Array
from ._vectors import Ints, assign, kmeans, members, nearest

EXACT_UP_TO = 8192  # rows: one cell, all pairs
CELL = 512  # rows per centre on average
HOMES = 2
CROWDED = 4  # times CELL: a larger cell is divided once more
SAMPLE, LEAST = 64, 8192  # rows per centre that the centres are learnt from, and in all


def cells(unit: Array, seed: int) -> Iterator[Ints]:
    """Row numbers of each cell, ascending, for unit rows (N, D)."""
    if len(unit) <= EXACT_UP_TO:
        yield np.arange(len(unit))
        return
    for rows in _split(unit, seed):
        if len(rows) <= CROWDED * CELL:
            yield rows
            continue
        # Some centres are near everything, the more so the more dimensions there are.
        for part in _split(unit[rows], seed + 1):
            yield rows[part]


def _split(unit: Array, seed: int) -> Iterator[Ints]:
    """Rows of each centre, ascending."""
    homes, centres = partition(unit, CELL, HOMES, seed)
    for found in members(homes.ravel(), len(centres)):  # (N, HOMES) -> (N * HOMES,)
        rows = found // HOMES  # ascending; twice where both homes are this one
        rows = rows[np.diff(rows, prepend=-1) > 0]
        if len(rows) > 1:
            yield rows


def partition(unit: Array, size: int, homes: int, seed: int) -> tuple[Ints, Array]:
    """The ``homes`` nearest of about N / size spherical centres: (N, D) -> (N, homes), (C, D).

    They are learnt by k-means of two levels, in time linear in N. To compare each row with all of
    them is of N^1.5, but for ``near`` and ``leak`` together an eighth of curating a million: an
    index that skips some would hardly be quicker there, and misses some copies.
    """
    centres = _centres(unit, -(-len(unit) // size), seed)
    return nearest(unit, centres, homes), centres


def _centres(unit: Array, count: int, seed: int) -> Array:
    """About ``count`` centres (C, D), learnt from a sample within about sqrt(count) parts of it."""
    size = min(len(unit), max(SAMPLE * count, LEAST))
    rng = np.random.default_rng(seed)
    sample = unit[np.sort(rng.choice(len(unit), size, replace=False))]
    coarse = kmeans(sample, round(count**0.5), seed, iterations=10)
    fine = [
        kmeans(sample[own], max(1, round(count * len(own) / size)), seed, iterations=10)
        for own in members(assign(sample, coarse), len(coarse))
        if len(own)
    ]
    return np.concatenate(fine)
