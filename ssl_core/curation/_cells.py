"""Overlapping cells: rows that resemble each other share one, and no cell grows with N.

So the search for pairs is near-linear: about N / CELL cells, each compared with itself. A row
lives in the cells of its two nearest centres; a pair is missed only if it shares neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..types import Array
from ._vectors import Ints, assign, kmeans, members

EXACT_UP_TO = 8192  # rows: one cell, all pairs
CELL = 512  # rows per centre on average
HOMES = 2
CROWDED = 4  # times CELL: a larger cell is divided once more
PROBES = 8  # coarse cells searched for the nearest centres
BLOCK = 4096  # rows compared with them at a time
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
        rows = np.unique(found // HOMES)
        if len(rows) > 1:
            yield rows


def partition(unit: Array, size: int, homes: int, seed: int) -> tuple[Ints, Array]:
    """The ``homes`` nearest of about N / size spherical centres: (N, D) -> (N, homes), (C, D).

    k-means of two levels, for learning as for searching: near-linear in N.
    """
    coarse, centres = _centres(unit, -(-len(unit) // size), seed)
    return _homes(unit, coarse, centres, homes), centres


def _centres(unit: Array, count: int, seed: int) -> tuple[Array, Array]:
    """About sqrt(count) coarse centres, and about count fine ones, learnt from a sample."""
    size = min(len(unit), max(SAMPLE * count, LEAST))
    rng = np.random.default_rng(seed)
    sample = unit[np.sort(rng.choice(len(unit), size, replace=False))]
    coarse = kmeans(sample, round(count**0.5), seed, iterations=10)
    fine = [
        kmeans(sample[own], max(1, round(count * len(own) / size)), seed, iterations=10)
        for own in members(assign(sample, coarse), len(coarse))
        if len(own)
    ]
    return coarse, np.concatenate(fine)


def _homes(unit: Array, coarse: Array, centres: Array, count: int) -> Ints:
    """The nearest centres of each row, as good as always: (N, D) -> (N, count).

    Rows of one coarse cell are compared with the centres of the ``PROBES`` coarse cells nearest to
    it: a matrix product for each cell, where an inverted file would go row by row.
    """
    of_coarse = members(assign(centres, coarse), len(coarse))
    near = np.argsort(-(coarse @ coarse.T), axis=1)[:, :PROBES]  # (K, PROBES)
    homes = np.empty((len(unit), count), dtype=np.int64)
    for k, rows in enumerate(members(assign(unit, coarse), len(coarse))):
        listed = np.sort(np.concatenate([of_coarse[j] for j in near[k]]))
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            homes[part] = listed[_best(unit[part] @ centres[listed].T, count)]
    return homes


def _best(similar: Array, count: int) -> Ints:
    """Columns of the largest values, the last one repeated if there are too few.

    (B, n) -> (B, count). Changes ``similar``.
    """
    row, found = np.arange(len(similar)), []
    for _ in range(min(count, similar.shape[1])):
        found.append(similar.argmax(axis=1))
        similar[row, found[-1]] = -np.inf
    return np.stack(found + [found[-1]] * (count - len(found)), axis=1)
