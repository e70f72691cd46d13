"""Images of other than three channels: ``.npy`` bytes, scaling, and what stands for their colours.

An array is (H, W, C) uint8. Nothing is ever unpickled: a header that names uint8 is followed by
plain bytes, and no other header is taken.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
MAGIC = b"\x93NUMPY"
MOST = 16  # channels


@dataclass(frozen=True)
class Header:
    """What an .npy file says of itself; its values begin at byte ``start``."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def end(self) -> int:
        """Where the file ends."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def is_array(data: bytes) -> bool:
    """Whether this is an .npy file."""
    return data.startswith(MAGIC)


def read_header(data: bytes) -> Header:
    """Parse the header; no value is read.

    Raises:
        ValueError: not .npy, damaged, or a version that only structured arrays need.
    """
    stream = io.BytesIO(data)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except Exception:  # a dozen types, from the tokeniser to numpy; some name addresses
        raise ValueError("the header is damaged or of an unknown version") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return Header(tuple(shape), dtype, fortran, stream.tell())


def unpack(data: bytes) -> Pixels:
    """The array in an .npy file, (H, W) or (H, W, C) -> (H, W, C); read-only.

    Raises:
        ValueError: not .npy, not uint8, of another shape, or not as long as it says.
    """
    header = read_header(data)
    if header.dtype != np.uint8 or len(header.shape) not in (2, 3) or len(data) != header.end:
        raise ValueError(f"{header.dtype} {header.shape} in {len(data)} bytes is no image")
    flat = np.frombuffer(data, np.uint8, offset=header.start)
    pixels = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def pack(pixels: Pixels) -> bytes:
    """(H, W, C) -> .npy bytes without loss; equal pixels give equal bytes."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(pixels), (1, 0), allow_pickle=False)
    return out.getvalue()


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """(H, W, C) -> (height, width, C) for ``size`` (width, height): bicubic, antialiased."""
    if pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0)]
    return np.stack([np.asarray(b.resize(size, Image.Resampling.BICUBIC)) for b in bands], axis=2)


def to_rgb(pixels: Pixels) -> Pixels:
    """(..., C) -> (..., 3): the first three bands, or the first one repeated where C < 3.

    Only for what needs colours: pHash, CleanVision, the seed encoder and thumbnails.
    """
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
