"""Silhouettes, textures and digits, drawn here at any size and number of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rng = np.random.Generator
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]


def _star(u: Plane, v: Plane) -> Mask:
    turn = np.cos(5 * np.arctan2(v, u))
    return np.asarray(np.hypot(u, v) < 0.68 + 0.32 * turn, np.bool_)


# u, v: places in a frame in which the silhouette fills [-1, 1].
SHAPES: dict[str, Callable[[Plane, Plane], Mask]] = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.8,
    "triangle": lambda u, v: (v < 0.7) & (v > 2 * np.abs(u) - 1),
    "cross": lambda u, v: (
        (np.minimum(np.abs(u), np.abs(v)) < 0.32) & (np.maximum(np.abs(u), np.abs(v)) < 1)
    ),
    "ring": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.55),
    "star": _star,
}
CELL = 1 / 9  # period of a texture, of the side


def _blotches(x: Plane, y: Plane, rng: Rng) -> Mask:
    cells = rng.random((20, 20)) < 0.5
    return np.asarray(cells[(y * 17).astype(int) % 20, (x * 17).astype(int) % 20], np.bool_)


# x, y: places in the image, in sides, moved by chance. Where a texture is dark.
TEXTURES: dict[str, Callable[[Plane, Plane, Rng], Mask]] = {
    "rows": lambda x, y, rng: y % CELL < CELL / 2,
    "columns": lambda x, y, rng: x % CELL < CELL / 2,
    "diagonals": lambda x, y, rng: (x + y) % (1.4 * CELL) < 0.7 * CELL,
    "checks": lambda x, y, rng: (x % CELL < CELL / 2) ^ (y % CELL < CELL / 2),
    "dots": lambda x, y, rng: np.hypot(x % CELL - CELL / 2, y % CELL - CELL / 2) < 0.36 * CELL,
    "blotches": _blotches,
}


def silhouette(name: str, side: int, centre: tuple[float, float], size: float, turn: float) -> Mask:
    """A shape's mask (side, side); ``centre`` (y, x) and ``size`` in sides, ``turn`` in radians."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    y, x = (y - centre[0]) / size, (x - centre[1]) / size
    return SHAPES[name](x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn))


def texture(name: str, side: int, rng: Rng) -> Mask:
    """Where a texture is dark, (side, side), at a random phase."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side + rng.random((2, 1, 1))
    return TEXTURES[name](x, y, rng)


def stacked(images: Sequence[Plane]) -> Tensor:
    """Images (C, S, S) of values 0 to 255 -> uint8 (N, C, S, S)."""
    return torch.from_numpy(np.stack([np.clip(i, 0, 255).astype(np.uint8) for i in images]))


def cue(shape: str, filling: str, side: int, channels: int, rng: Rng) -> Plane:
    """A textured silhouette on a plain ground in random colours: (C, S, S)."""
    centre = (0.5 + rng.uniform(-0.08, 0.08), 0.5 + rng.uniform(-0.08, 0.08))
    inside = silhouette(shape, side, centre, rng.uniform(0.34, 0.44), rng.normal(0, 0.2))
    dark = texture(filling, side, rng)
    ground, pale, deep = (rng.uniform(*r, channels) for r in ((90, 150), (180, 255), (0, 70)))
    filled = np.where(dark, deep[:, None, None], pale[:, None, None])
    return np.where(inside, filled, ground[:, None, None])


def cues(pairs: NDArray[np.int64], side: int, channels: int, rng: Rng) -> Tensor:
    """Images of pairs (N, 2) of shape and texture numbers."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    return stacked([cue(shapes[s], textures[t], side, channels, rng) for s, t in pairs])


def digits() -> tuple[Plane, NDArray[np.int64]]:
    """scikit-learn's handwritten digits, ink 0 to 1: (1797, 8, 8), and what they are."""
    from sklearn.datasets import load_digits

    pixels, names = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8) / 16, names.astype(np.int64)


def pasted(ground: Plane, ink: Plane, centre: tuple[float, float], size: float) -> Plane:
    """A small picture's ink (h, w) in black on an image (C, S, S); ``size``: half its height."""
    side = ground.shape[-1]
    length = max(2, round(2 * size * side))
    small = torch.from_numpy(ink)[None, None]
    large = torch.nn.functional.interpolate(small, (length, length), mode="bilinear")[0, 0].numpy()
    top, left = (int(np.clip(round(c * side - length / 2), 0, side - length)) for c in centre)
    out = ground.copy()
    out[:, top : top + length, left : left + length] *= 1 - large
    return out
