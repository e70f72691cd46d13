"""Images on the page: found in shards or on disk, shrunk, and never trusted."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from .. import bands, store
from ._theme import BAD, GOOD, PAPER

Pixels = NDArray[np.uint8]
SIDE = 72  # pixels of a thumbnail
MAX_BYTES, MAX_PIXELS = 20 * 2**20, 25_000_000  # larger files get no thumbnail


def fit(image: Image.Image, side: int = SIDE) -> Pixels:
    """RGB on white, whole, in a square: (side, side, 3)."""
    rgba = image.convert("RGBA")
    rgba.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def from_bytes(data: bytes, side: int = SIDE) -> Pixels | None:
    """Thumbnail of an untrusted file; None where it cannot or should not be decoded."""
    if len(data) > MAX_BYTES:
        return None
    try:
        if bands.is_array(data):
            image = Image.fromarray(np.ascontiguousarray(bands.to_rgb(bands.unpack(data))))
        else:
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            return None
        image.draft("RGB", (side, side))
        return fit(image, side)
    except Exception:  # a hostile file may fail in any way; the page only lacks a picture
        return None


def from_disk(ref: str, root: Path, side: int = SIDE) -> Pixels | None:
    """Thumbnail of a manifest path; None where it cannot be read. Remote ones are not fetched."""
    from ..images import read_bytes

    if ref.startswith("s3://"):
        return None
    try:
        return from_bytes(read_bytes(ref, root), side)
    except Exception:  # gone, unsafe, unreadable
        return None


class Shards:
    """Random access to stored images by sha256."""

    def __init__(self, folder: Path) -> None:
        self.store = store.at(folder)
        index = pd.read_parquet(folder / "index.parquet")
        self.places: dict[str, Any] = {
            str(r.key): r for r in index[["key", "shard", "offset", "size"]].itertuples(index=False)
        }

    def get(self, key: str, side: int = SIDE) -> Pixels:
        """(side, side, 3); blank where the image is not in the shards."""
        place = self.places.get(key)
        found = None
        if place is not None:
            with self.store.open(place.shard) as handle:
                found = from_bytes(os.pread(handle, place.size, place.offset), side)
        return np.full((side, side, 3), 235, np.uint8) if found is None else found


def encode(pixels: Pixels) -> bytes:
    """PNG for few colours, else WebP: whichever is smaller for a thumbnail."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=82, method=4)
    return out.getvalue()


def uri(pixels: Pixels | None) -> str | None:
    """Data URI of a thumbnail."""
    if pixels is None:
        return None
    return "data:image/webp;base64," + base64.b64encode(encode(pixels)).decode()


def png_uri(pixels: Pixels) -> str:
    """Data URI without loss, for maps whose single pixels matter."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def sheet(rows: Sequence[Sequence[Pixels]], marks: Sequence[Sequence[bool | None]]) -> bytes:
    """A grid as one PNG; ``marks`` gives each cell a green, red or no border."""
    side, gap, edge = SIDE, 8, 3
    height = gap + len(rows) * (side + gap)
    width = gap * 2 + max(len(r) for r in rows) * (side + gap)
    page = Image.new("RGB", (width, height), PAPER)
    for r, (row, signs) in enumerate(zip(rows, marks, strict=True)):
        for c, (pixels, sign) in enumerate(zip(row, signs, strict=True)):
            x, y = gap + c * (side + gap) + (gap if c else 0), gap + r * (side + gap)
            if sign is not None:
                frame = (x - edge, y - edge, x + side + edge, y + side + edge)
                page.paste(GOOD if sign else BAD, frame)
            page.paste(Image.fromarray(pixels).resize((side, side)), (x, y))
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


def resize(pixels: Pixels, side: int) -> Pixels:
    """(H, W, 3) -> (side, side, 3)."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def blocks(pixels: Pixels, side: int = SIDE) -> Pixels:
    """Enlarge a coarse map (h, w, 3) -> (side, side, 3) without smoothing."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST))
