"""Stored images to squares of pixels, decoded no larger than the square needs.

A JPEG is decoded by libjpeg-turbo (simplejpeg, MIT) at a fraction of its size, which its DCT
gives for less than the whole; what it refuses, and all other formats, Pillow decides on. Equal
bytes give equal pixels.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import bands

Pixels = NDArray[np.uint8]
WHITE = 255
JPEG = b"\xff\xd8\xff"
# Eighths to decode at. 5, 6 and 7 are left out: turbo has no vector code for them, and the whole
# is decoded as fast (500 × 334 pixels: 1.6, 1.8, 2.2 ms against 1.5).
EIGHTHS = (1, 2, 3, 4)
# How much larger than wanted the fraction must be. At 1.0 the DCT's own low-pass, sharper than
# the bicubic one, does all the work (35 dB from the whole scaled down); at 1.25 over 38 dB.
MARGIN = 1.25
MOST = 2**28  # pixels of one image: a damaged header may promise any number


class Corrupt(Exception):
    """Bytes that are no image of the kind that is read; says why."""


def _fitted(width: float, height: float, side: int) -> tuple[int, int]:
    """(width, height) whose longer one is ``side``, in proportion."""
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(pixels: Pixels, size: tuple[int, int], extent: tuple[float, float]) -> Pixels:
    """(H, W, C) -> (C, height, width) for ``size`` (width, height): bicubic, antialiased.

    ``extent`` (width, height) is the part of ``pixels`` that the image covers: one decoded at 3/8
    may end amid its last row. To scale the whole would shift it by up to half a pixel, and cost
    some 10 dB. The filter is torch's, Pillow's to within 2 of 255 at 4 times the speed.
    """
    if size == pixels.shape[1::-1]:
        return pixels.transpose(2, 0, 1)  # (H, W, C) -> (C, H, W)
    import torch  # here: its import takes seconds

    planes = torch.from_numpy(pixels).permute(2, 0, 1)  # (H, W, C) -> (C, H, W)
    scales = (size[1] / extent[1], size[0] / extent[0])
    resize = torch.ops.aten._upsample_bicubic2d_aa.default
    found: Pixels = resize(planes[None], size[::-1], False, *scales)[0].numpy()
    return found  # (C, height, width)


def _square(planes: Pixels, side: int) -> Pixels:
    """(C, H, W) -> (C, side, side), white around it."""
    channels, height, width = planes.shape
    if (height, width) == (side, side):
        return planes
    out = np.full((side, side, channels), WHITE, dtype=np.uint8).transpose(2, 0, 1)
    top, left = (side - height) // 2, (side - width) // 2
    out[:, top : top + height, left : left + width] = planes
    return out


def canvas(pixels: Pixels, side: int) -> Pixels:
    """Fit an image into a white square: (H, W, C) -> (C, side, side), whole and in proportion.

    A centre crop would cut off what lies at the edge before training's random crop has chosen,
    and a plain resize would distort. White, 255 in every band, is what transparency is flattened
    on as well.
    """
    height, width, _ = pixels.shape
    ready = pixels if pixels.flags.writeable else pixels.copy()  # torch takes no other
    return _square(_resize(ready, _fitted(width, height, side), (width, height)), side)


def _jpeg(data: bytes, side: int) -> Pixels | None:
    """A JPEG's bytes -> (3, side, side), or None where libjpeg-turbo refuses or warns."""
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MOST:
            raise Corrupt(f"{width} × {height} pixels")
        size = _fitted(width, height, side)
        enough = (m for m in EIGHTHS if max(width, height) * m >= side * MARGIN * 8)
        part = next(enough, 8)
        # libjpeg rounds up; to ask for exactly these sizes makes it choose this fraction.
        rows, columns = -(-height * part // 8), -(-width * part // 8)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns)
    except ValueError:
        return None
    if pixels.shape[:2] == (height, width):
        part = 8  # so small that all fractions round up to the whole
    return _square(_resize(pixels, size, (width * part / 8, height * part / 8)), side)


def _pillow(data: bytes, side: int) -> Pixels:
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MOST:
            raise Corrupt(f"{image.width} × {image.height} pixels")
        pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    except (MemoryError, Corrupt):
        raise
    except Exception as error:  # any of a dozen types, by format and by kind of damage
        raise Corrupt(str(error).partition(" at 0x")[0] or type(error).__name__) from None
    return canvas(pixels, side)


def decode(data: bytes, side: int, channels: int, stored: int) -> Pixels:
    """The bytes of one sample -> uint8 (channels, side, side), whole on a white square.

    ``stored`` channels are expected in the bytes; of others, ``bands.to_rgb`` makes three.

    Raises:
        Corrupt: the bytes are damaged, or of another number of channels.
    """
    if not bands.is_array(data):
        if channels != 3:
            raise Corrupt(f"3 channels where {channels} are expected")
        found = _jpeg(data, side) if data.startswith(JPEG) else None
        return _pillow(data, side) if found is None else found
    try:
        pixels = bands.unpack(data)
    except ValueError as error:
        raise Corrupt(str(error)) from None
    if pixels.shape[2] != stored or min(pixels.shape) < 1:
        raise Corrupt(f"shape {pixels.shape} where {stored} channels are expected")
    return canvas(bands.to_rgb(pixels) if channels == 3 else pixels, side)
