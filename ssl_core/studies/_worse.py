"""Worse pictures for pretraining, as in Cole et al. (arXiv 2105.05837)."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
FACTOR, QUALITY, SHARE = 4, 10, 0.1


def downsampled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A quarter of the side and back: (H, W, 3) -> the same."""
    image = Image.fromarray(pixels)
    small = image.resize([max(1, s // FACTOR) for s in image.size], Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


def jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Through a JPEG file of low quality: (H, W, 3) -> the same."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


def salt_and_pepper(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A tenth of the pixels black or white: (H, W, 3) -> the same."""
    drawn = rng.random(pixels.shape[:2])
    out = pixels.copy()
    out[drawn < SHARE / 2] = 0
    out[drawn > 1 - SHARE / 2] = 255
    return out


KINDS = {"downsampled": downsampled, "jpeg": jpeg, "salt and pepper": salt_and_pepper}
