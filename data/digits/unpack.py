"""Write scikit-learn's handwritten digits as posed pictures with their labels.

    python data/digits/unpack.py [--root .] [--seed 0]

1,797 real digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits", 43 writers,
CC-BY-4.0) come with scikit-learn. Each gets a pose (size, turn, place) and grey ink on grey paper,
32 pixels wide: digits that are registered to the pixel would let raw pixels win. Ten balanced
classes: the other end of the scale from the emoji, with 99 in a long tail. Writes
``data/raw/digits/<label>/*.png`` below the root; everything is a function of the seed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 32


def picture(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """One digit (8, 8) of 0..16 -> RGB of SIDE pixels."""
    stroke = Image.fromarray((digit * 255 / 16).astype(np.uint8))
    side, turn = int(rng.integers(16, 29)), rng.normal(0, 12)
    stroke = stroke.resize((side, side), Image.Resampling.BICUBIC)
    stroke = stroke.rotate(turn, Image.Resampling.BICUBIC)
    left, top = rng.integers(0, SIDE - side + 1, 2)
    paper = Image.new("RGB", (SIDE, SIDE), 3 * (int(rng.integers(215, 256)),))
    ink = Image.new("RGB", (side, side), 3 * (int(rng.integers(0, 60)),))
    paper.paste(ink, (int(left), int(top)), stroke)
    return paper


def unpack(root: Path, seed: int = 0) -> int:
    """Write all digits; returns how many."""
    folder, rng = root / "data/raw/digits", np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    images, labels = load_digits(return_X_y=True)
    for i, (flat, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(flat.reshape(8, 8), rng).save(path)
    return len(labels)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{unpack(given.root, given.seed)} digits")


if __name__ == "__main__":
    main()
