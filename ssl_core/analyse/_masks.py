"""True masks beside patch maps, and overlap with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._subject import NOT_JUDGED, Rows, Subject

Mask = NDArray[np.bool_]
Classes = NDArray[np.uint8]
NONE = "no true masks: give a folder of them (analyse.masks)"
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two lie outside


def rows(subject: Subject, count: int, split: str = "test") -> Rows:
    """At most ``count`` rows of a split that have a mask, ascending, drawn by the seed."""
    if subject.masks is None:
        return np.zeros(0, np.int64)
    found = np.intersect1d(subject.draw(len(subject.rows), split), subject.masks.rows())
    rng = np.random.default_rng(subject.seed)
    return np.sort(rng.choice(found, min(count, len(found)), replace=False))


def true(subject: Subject, chosen: Rows) -> Classes:
    """Masks (B, S, S) of rows that have one."""
    assert subject.masks is not None
    return subject.masks.take(chosen, subject.source.side)


def objects(masks: Classes) -> Mask:
    """Where any object is: (B, S, S)."""
    found: Mask = (masks != 0) & (masks != NOT_JUDGED)
    return found


def enlarged(cells: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    """Values of cells for each pixel: (..., h, w) -> (..., side, side), nearest."""
    y, x = ((np.arange(side) * n) // side for n in cells.shape[-2:])
    return cells[..., y[:, None], x[None, :]]


def shares(mask: Mask, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Share of each cell that a mask covers: (B, S, S) -> (B, h, w)."""
    side = mask.shape[-1]
    y, x = ((np.arange(side) * n) // side for n in grid)
    code = y[:, None] * grid[1] + x[None, :]  # (S, S)
    count = np.bincount(code.ravel(), minlength=grid[0] * grid[1])
    sums = [np.bincount(code[m], minlength=len(count)) for m in mask]
    found: NDArray[np.float64] = (np.stack(sums) / count).reshape(-1, *grid)
    return found


def iou(found: Mask, masks: Classes) -> NDArray[np.float64]:
    """Jaccard index of each found mask (B, S, S) with the objects; what is not judged is left out.

    NaN where there is nothing to find.
    """
    judged, truth = masks != NOT_JUDGED, objects(masks)
    both = (found & truth).sum((1, 2)).astype(np.float64)
    either = ((found & judged) | truth).sum((1, 2))
    there = truth.any((1, 2))
    values: NDArray[np.float64] = np.divide(
        both, either, out=np.full(len(found), np.nan), where=there
    )
    return values


def box(mask: Mask) -> Box | None:
    """The smallest box around a mask (S, S); None of an empty one."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(y):
        return None
    return int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1


def box_iou(a: Box, b: Box) -> float:
    """Overlap of two boxes over their union."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    both = max(height, 0) * max(width, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / (sum(areas) - both)
