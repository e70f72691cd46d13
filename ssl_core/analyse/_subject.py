"""What an analysis looks at, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import embed, models
from ..errors import HeadwaterError
from ..finetune import Source
from ..types import Array, Embeddings

Row = dict[str, Any]
Rows = NDArray[np.int64]
NAN = float("nan")


@dataclass(frozen=True)
class Finding:
    """Rows of one analysis, its pictures (PNG), and why there is nothing, if so."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    missing: str = ""


def row(
    metric: str,
    value: float,
    n: int,
    slice_: str = "all",
    interval: tuple[float, float] = (NAN, NAN),
) -> Row:
    """One row of a finding."""
    low, high = interval
    return {
        "slice": slice_,
        "metric": metric,
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "n": int(n),
    }


@dataclass(frozen=True)
class Masks:
    """True object masks: a PNG for each image, of any size, in a folder that mirrors the images'.

    Pixels: 0 background, 255 not judged, any other value an object's class.
    """

    files: tuple[Path | None, ...]  # by row of the images

    def rows(self) -> Rows:
        """The rows that have a mask."""
        return np.flatnonzero([file is not None for file in self.files])

    def take(self, rows: Rows, side: int) -> NDArray[np.uint8]:
        """Masks (B, side, side) of rows that have one.

        Raises:
            HeadwaterError: a file that is no image of one channel.
        """
        from PIL import Image, UnidentifiedImageError

        out = np.empty((len(rows), side, side), np.uint8)
        for place, number in enumerate(rows):
            file = self.files[number]
            try:
                with Image.open(file or "") as image:
                    if image.mode not in ("L", "P", "1"):
                        raise UnidentifiedImageError(f"mode {image.mode}")
                    small = image.convert("L") if image.mode == "1" else image
                    out[place] = np.asarray(small.resize((side, side), Image.Resampling.NEAREST))
            except (OSError, UnidentifiedImageError) as error:
                rule = f"is no mask ({error})"
                fix = "save masks as PNG of mode L, P or 1 (analyse.masks)"
                raise HeadwaterError(file, rule, fix) from error
        return out


@dataclass(frozen=True)
class Subject:
    """An encoder, in eval mode and on the device, with the images it is looked at on.

    ``rows``: all images with the encoder's pooled features (N, D); ``is_train`` (N,) splits them;
    ``source``: their pixels, in the same order; ``colour``: mean and std of the inputs.
    """

    name: str
    encoder: models.Encoder
    colour: tuple[models.Colour, models.Colour]
    source: Source
    rows: Embeddings
    is_train: NDArray[np.bool_]
    masks: Masks | None = None
    seed: int = 0

    @cached_property
    def train(self) -> Embeddings:
        """The training split."""
        return embed.rows(self.rows, self.is_train)

    @cached_property
    def test(self) -> Embeddings:
        """The test split."""
        return embed.rows(self.rows, ~self.is_train)

    def draw(self, count: int, split: str = "test", labelled: bool = False) -> Rows:
        """At most ``count`` row numbers of a split, ascending, drawn by the seed."""
        mask = self.is_train if split == "train" else ~self.is_train
        if labelled:
            mask = mask & (self.rows.labels >= 0)
        chosen = np.flatnonzero(mask)
        rng = np.random.default_rng(self.seed)
        return np.sort(rng.choice(chosen, min(count, len(chosen)), replace=False))

    def inputs(self, rows: Rows) -> Tensor:
        """Normalised images (B, C, S, S) on the encoder's device."""
        return self.normalised(self.source.take(rows))

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, C, S, S) -> normalised float32 on the encoder's device."""
        device = next(self.encoder.parameters()).device
        return models.preprocess(images.to(device), *self.colour)

    @torch.inference_mode()
    def features(self, images: Tensor, batch_size: int = 256) -> Array:
        """Pooled features (N, D) of other images, uint8 (N, C, S, S): crops, corrupted ones ..."""
        parts = [
            embed.forward(self.encoder, images[i : i + batch_size], *self.colour)
            for i in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts)
