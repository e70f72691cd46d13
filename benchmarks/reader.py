"""Stored JPEGs to squares on one core: ours against Pillow's decode, convert and resize.

``python -m benchmarks.reader [--images 64] [--rounds 5]``. All cases decode the same bytes, crops
of a photograph that scikit-learn ships, and give a (3, side, side) array with a white margin.
"""

from __future__ import annotations

import argparse
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks._common import Row, compare, report
from ssl_core import decoding

SIZES = ((500, 375), (320, 240), (64, 64))  # as stored
SIDES = {(500, 375): (224, 128, 64), (320, 240): (224, 128, 64), (64, 64): (64,)}
Square = NDArray[np.uint8]


def encoded(size: tuple[int, int], count: int) -> list[bytes]:
    """Crops of the photograph, half of its scale or more, as JPEG (quality 90, 4:2:0)."""
    from sklearn.datasets import load_sample_image

    photo, rng = Image.fromarray(load_sample_image("china.jpg")), np.random.default_rng(0)
    made = []
    for _ in range(count):
        scale = rng.uniform(0.5, 0.85)
        width, height = int(photo.width * scale), int(photo.width * scale * size[1] / size[0])
        left = int(rng.integers(0, photo.width - width + 1))
        top = int(rng.integers(0, max(1, photo.height - height + 1)))
        out = io.BytesIO()
        crop = photo.crop((left, top, left + width, min(photo.height, top + height)))
        crop.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def by_pillow(data: bytes, side: int, draft: bool) -> Square:
    """Open, (draft,) convert, resize, paste on white: how loaders commonly do it."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    if draft:
        image.draft("RGB", (side, side))
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    out = np.full((3, side, side), 255, np.uint8)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    out[:, top : top + size[1], left : left + size[0]] = small.transpose(2, 0, 1)
    return out


def psnr(a: Square, b: Square) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


def measure(size: tuple[int, int], side: int, count: int, rounds: int) -> tuple[list[Row], float]:
    """Rows of one pair of sizes, and the worst PSNR of ours against the whole by Pillow."""
    files = encoded(size, count)

    def ours() -> int:
        return len([decoding.decode(d, side, 3, 3) for d in files])

    def whole() -> int:
        return len([by_pillow(d, side, False) for d in files])

    def draft() -> int:
        return len([by_pillow(d, side, True) for d in files])

    group = f"{size[0]}×{size[1]} → {side}"
    cases = {"headwater": ours, "Pillow": whole, "Pillow, draft": draft}
    worst = min(psnr(decoding.decode(d, side, 3, 3), by_pillow(d, side, False)) for d in files)
    return compare(group, cases, "Pillow", rounds), worst


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    quality = {}
    for size in SIZES:
        for side in SIDES[size]:
            found, worst = measure(size, side, args.images, args.rounds)
            rows += found
            quality[f"{size[0]}×{size[1]} → {side}"] = round(worst, 1)
    report(
        "reader",
        "Decode to a square, one core",
        rows,
        images=args.images,
        worst_psnr_against_pillow=quality,
    )


if __name__ == "__main__":
    main()
