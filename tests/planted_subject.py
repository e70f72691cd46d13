"""Small subjects for analyses: discs, squares and crosses on pale ground, with true masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_core import embed, models
from ssl_core.analyse._subject import Masks, Subject
from ssl_core.types import Embeddings

SIDE = 32
VIT = {"img_size": SIDE, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
CNN = {"channels": (8, 16, 16, 24), "layers": (1, 1, 1, 1), "stem_width": 8}
CLASSES = ("cross", "disc", "square")


@dataclass(frozen=True)
class Held:
    """Images in memory, (N, C, S, S) uint8, as a Source."""

    images: Tensor

    @property
    def side(self) -> int:
        return int(self.images.shape[-1])

    @property
    def channels(self) -> int:
        return int(self.images.shape[1])

    def take(self, rows: np.ndarray) -> Tensor:
        return self.images[torch.from_numpy(np.asarray(rows))]


def drawn(count: int, side: int = SIDE, channels: int = 3) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Images (N, C, S, S), masks (N, S, S) of 0 and 1, and labels (N,)."""
    rng = np.random.default_rng(0)
    images = np.empty((count, channels, side, side), np.uint8)
    masks = np.zeros((count, side, side), np.uint8)
    labels = np.arange(count) % len(CLASSES)
    y, x = np.mgrid[:side, :side]
    for i, label in enumerate(labels):
        cy, cx = rng.uniform(0.38, 0.62, 2) * side
        size = rng.uniform(0.18, 0.3) * side
        far = np.abs(y - cy), np.abs(x - cx)
        inside = [
            (np.minimum(*far) < size / 3) & (np.maximum(*far) < size),
            far[0] ** 2 + far[1] ** 2 < size**2,
            np.maximum(*far) < size,
        ][label]
        masks[i][inside] = 1
        ground, ink = rng.integers(200, 250, channels), rng.integers(0, 120, channels)
        clean = np.where(inside, ink[:, None, None], ground[:, None, None])
        images[i] = np.clip(clean + rng.normal(0, 6, clean.shape), 0, 255)
    return torch.from_numpy(images), masks, labels.astype(np.int64)


def encoder(kind: str, seed: int = 0, **args: object) -> models.Encoder:
    """A tiny untrained ViT or CNN in eval mode."""
    torch.manual_seed(seed)
    name, own = ("vit_tiny_patch16_224", VIT) if kind == "vit" else ("resnet10t", CNN)
    found = models.create(name, {**own, **args})
    return found.eval()


def subject(
    folder: Path | None = None, kind: str = "vit", count: int = 96, **args: object
) -> Subject:
    """A subject; with a folder its true masks are written there."""
    images, masks, labels = drawn(count)
    files = []
    for i, mask in enumerate(masks if folder else []):
        files.append(folder / f"{i}.png")
        Image.fromarray(mask).save(files[-1])
    return of(encoder(kind, **args), images, labels, Masks(tuple(files)) if folder else None)


def of(
    net: models.Encoder, images: Tensor, labels: np.ndarray, masks: Masks | None = None
) -> Subject:
    """A subject of these images; every third one is held out, two of a kind form a group."""
    n = np.arange(len(images))
    rows = Embeddings(
        np.zeros((len(n), net.embed_dim), np.float32),
        labels,
        CLASSES,
        np.array([f"{i:064x}" for i in n]),
        np.array([f"g{i // 6}-{i % 3}" for i in n]),
        np.array(["here"] * len(n)),
    )
    colour = models.normalisation(images.shape[1])
    bare = Subject("tiny", net, colour, Held(images), rows, n % 4 != 0, masks)
    return replace(bare, rows=embed.with_features(rows, bare.features(images)))
