"""Samples that several tests write into shards."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ssl_core.shards import Sample

SIDE = 16
MAX_BYTES = 40_960


def encoded(rng: np.random.Generator, ext: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, {"png": "PNG", "jpg": "JPEG"}[ext])
    return out.getvalue()


def samples(count: int = 90) -> list[Sample]:
    rng = np.random.default_rng(7)
    made = []
    for i in range(count):
        ext = "jpg" if i % 3 == 0 else "png"
        size = (SIDE, SIDE) if i % 2 else (int(rng.integers(8, 50)), int(rng.integers(8, 50)))
        label = None if i % 5 == 0 else f"class {i % 4}"
        made.append(
            Sample(
                "test" if i < 20 else "train",
                f"{i:064x}",
                ext,
                encoded(rng, ext, size),
                label,
                f"g{i // 2}",
                "here",
            )
        )
    return made
