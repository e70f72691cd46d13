"""What a camera can spoil, measured on the pixels as the model gets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ._common import Vector

Pixels = NDArray[np.uint8]
MEASURES = ("brightness", "contrast", "sharpness", "colour")
TAIL = 0.01  # share of the reference that lies beyond its own limit
# name -> (measure, side that is bad)
FAULTS = {
    "dark": ("brightness", "below"),
    "overexposed": ("brightness", "above"),
    "flat": ("contrast", "below"),
    "blurred": ("sharpness", "below"),
    "colourless": ("colour", "below"),
}


def measure(image: Pixels) -> tuple[float, float, float, float]:
    """``MEASURES`` of one image (H, W, 3): mean and standard deviation of the luminance in grey
    levels; mean absolute Laplacian over the standard deviation; mean of largest less smallest
    channel. A darker copy of an image is as sharp as the image.
    """
    x = image.astype(np.float64)
    luma = x @ (0.299, 0.587, 0.114)  # (H, W, 3) -> (H, W)
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    edges = np.abs(around - 4 * luma[1:-1, 1:-1]).mean() if min(luma.shape) > 2 else 0.0
    spread = float(luma.std())
    colour = float((x.max(axis=2) - x.min(axis=2)).mean())
    return float(luma.mean()), spread, float(edges / (spread + 1.0)), colour


def table(pixels: Iterable[Pixels]) -> Vector:
    """(N, 4) of ``MEASURES``."""
    return np.array([measure(p) for p in pixels], np.float64).reshape(-1, len(MEASURES))


def limits(reference: Vector) -> dict[str, float]:
    """For each fault the value that ``TAIL`` of the reference (N, 4) lies beyond."""
    found = {}
    for name, (what, side) in FAULTS.items():
        column = reference[:, MEASURES.index(what)]
        found[name] = float(np.quantile(column, TAIL if side == "below" else 1 - TAIL))
    return found


def faulty(current: Vector, edge: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """For each fault which images (M,) lie beyond the limit."""
    found = {}
    for name, (what, side) in FAULTS.items():
        column = current[:, MEASURES.index(what)]
        found[name] = column < edge[name] if side == "below" else column > edge[name]
    return found
