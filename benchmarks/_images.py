"""Photographs to measure on: crops of scikit-learn's sample images, as JPEG files and shards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_core import shards

QUALITY = 90
WIDTH, HEIGHT = 500, 375


def photographs(count: int, seed: int = 0) -> Iterator[Image.Image]:
    """``count`` different crops, scaled to 500×375: no larger than a camera's detail allows."""
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(x) for x in load_sample_images().images]  # 640×427
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = sources[i % len(sources)]
        height = int(rng.integers(300, image.height + 1))
        width = min(image.width, round(height * WIDTH / HEIGHT))
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        cut = image.crop((left, top, left + width, top + height))
        yield cut.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def write(folder: Path, count: int, side: int) -> tuple[Path, Path]:
    """The same images as files, and as shards: longest side ``side``. Returns both folders."""
    files, tars = folder / f"files{side}", folder / f"shards{side}"
    files.mkdir(parents=True)
    tars.mkdir()
    samples = []
    for i, image in enumerate(photographs(count)):
        scale = side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        data = jpeg(image.resize(size, Image.Resampling.BICUBIC) if scale < 1 else image)
        (files / f"{i:05d}.jpg").write_bytes(data)
        key = f"{i:064x}"
        samples.append(shards.Sample("train", key, "jpg", data, str(i % 10), key, "bench"))
    shards.write(tars, samples, 8 * 2**20, side)
    return files, tars
