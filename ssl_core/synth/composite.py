"""New images from parts of real ones: pasted, cut and mixed in image space, without a model.

``paste`` puts the object of an image, turned and scaled, on the background of any other image
(arXiv 2012.07177); ``cutmix`` and ``mixup`` (arXiv 1905.04899, 1710.09412) combine two images of
one class, so that the label stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from ..config import Section
from ..progress import Reporter
from ._pool import Made, Pixels, Pool, Wanted

Kind = Literal["paste", "cutmix", "mixup"]
Mask = NDArray[np.bool_]
LEAST, MOST = 0.03, 0.85  # share of the image that an object may take
BINS = 256


class Options(Section):
    """Which kinds, and how far an object is moved."""

    kinds: tuple[Kind, ...] = Field(default=("paste", "cutmix", "mixup"), min_length=1)
    scale: tuple[float, float] = (0.7, 1.15)
    turn: float = Field(default=20.0, ge=0)  # degrees, at most, to either side
    flip: bool = False  # left and right are the same


# ---- the object --------------------------------------------------------------------------------


def otsu(values: NDArray[np.float64]) -> float:
    """The threshold between two classes of values that differ most (Otsu 1979)."""
    count, edges = np.histogram(values, BINS)
    middle = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(count), np.cumsum(count * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = total / below - (total[-1] - total) / above
        between = below * above * gap**2
    return float(edges[1 + int(np.nanargmax(np.where(above > 0, between, np.nan)))])


def outline(pixels: Pixels) -> Mask | None:
    """Where the object is, (H, W, 3) -> (H, W): what differs from the border's colour.

    None where nothing stands out, or nearly everything does.
    """
    from scipy import ndimage

    image = pixels.astype(np.float64)
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    far = np.linalg.norm(image - np.median(rim, axis=0), axis=2)  # (H, W, 3) -> (H, W)
    if far.max() < 1:
        return None
    mask = ndimage.binary_opening(far > otsu(far.ravel()))
    mask = ndimage.binary_fill_holes(mask)
    parts, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= 0.1 * sizes.max())
    found: Mask = np.isin(parts, large)
    return found if LEAST <= found.mean() <= MOST else None


def background(pixels: Pixels, mask: Mask | None, rng: np.random.Generator) -> Pixels:
    """The image without its object: what was behind it is drawn from what is beside it."""
    if mask is None:
        return pixels.copy()
    out, beside = pixels.copy(), pixels[~mask]
    out[mask] = beside[rng.integers(0, len(beside), int(mask.sum()))]
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(out.astype(np.float32), (2, 2, 0))
    out[mask] = np.clip(smooth[mask], 0, 255).astype(np.uint8)
    return out


# ---- the kinds ---------------------------------------------------------------------------------


def paste(front: Pixels, back: Pixels, options: Options, rng: np.random.Generator) -> Pixels | None:
    """The object of one image on the background of another; None where there is no object."""
    mask = outline(front)
    if mask is None:
        return None
    side = len(front)
    layer = np.dstack([front, np.where(mask, 255, 0).astype(np.uint8)])
    image = Image.fromarray(layer, "RGBA")
    if options.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = max(8, round(side * rng.uniform(*options.scale)))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-options.turn, options.turn), Image.Resampling.BICUBIC)
    room = abs(side - size) // 2 + side // 16
    corner = (side - size) // 2 + rng.integers(-room, room + 1, 2)
    ground = Image.fromarray(background(back, outline(back), rng)).convert("RGBA")
    whole = Image.new("RGBA", (side, side))
    whole.paste(image, (int(corner[0]), int(corner[1])))
    return np.asarray(Image.alpha_composite(ground, whole).convert("RGB"))


def cutmix(one: Pixels, two: Pixels, rng: np.random.Generator) -> Pixels:
    """A rectangle of one image, a quarter to a half of its area, over another."""
    height, width = one.shape[:2]
    share = np.sqrt(rng.uniform(0.25, 0.5))
    h, w = round(height * share), round(width * share)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    out = one.copy()
    out[top : top + h, left : left + w] = two[top : top + h, left : left + w]
    return out


def mixup(one: Pixels, two: Pixels, rng: np.random.Generator) -> Pixels:
    """The mean of two images, weighted by at least three tenths each."""
    share = rng.uniform(0.3, 0.7)
    mixed: Pixels = (share * one + (1 - share) * two.astype(np.float64)).round().astype(np.uint8)
    return mixed


def _one(pool: Pool, label: int, options: Options, rng: np.random.Generator) -> Made:
    """One image; a class of one image, or one without an object, is pasted whole or not at all."""
    rows = pool.of(label)
    first, kind = int(rng.choice(rows)), str(rng.choice(options.kinds))
    if kind == "paste":
        other = int(rng.integers(0, len(pool.pixels)))
        made = paste(pool.pixels[first], pool.pixels[other], options, rng)
        if made is not None:
            return Made(made, label, (first, other))
        kind = "cutmix"
    rest = rows[rows != first]
    second = int(rng.choice(rest)) if len(rest) else first
    mix = cutmix if kind == "cutmix" else mixup
    return Made(mix(pool.pixels[first], pool.pixels[second], rng), label, (first, second))


def generate(
    pool: Pool, wanted: Wanted, options: Options, seed: int, work: Path, report: Reporter
) -> Iterator[Made]:
    """``wanted[label]`` images of each class, each from two real ones."""
    for label, count in wanted.items():
        rng = np.random.default_rng([seed, label])
        for _ in range(count):
            yield _one(pool, label, options, rng)
