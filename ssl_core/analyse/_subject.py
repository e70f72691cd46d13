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
from ..evaluate import _common, _head, linear
from ..evaluate._common import NAN as NAN  # analyses take these from here
from ..evaluate._common import Row as Row
from ..evaluate._common import row as row
from ..finetune import Source
from ..types import Array, Embeddings

Rows = NDArray[np.int64]
NOT_JUDGED = 255  # in masks
DRAWS = 200  # bootstrap draws of an interval


@dataclass(frozen=True)
class Finding:
    """Rows of one analysis, its pictures (PNG), and why there is nothing, if so."""

    rows: list[Row] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    missing: str = ""


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
                    out[place] = _fitted(image.convert("L") if image.mode == "1" else image, side)
            except (OSError, UnidentifiedImageError) as error:
                rule = f"is no mask ({error})"
                fix = "save masks as PNG of mode L, P or 1 (analyse.masks)"
                raise HeadwaterError(file, rule, fix) from error
        return out


def _fitted(image: Any, side: int) -> NDArray[np.uint8]:
    """A mask as the reader fits its image: whole on a square; what lies beside is not judged."""
    from PIL import Image

    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    small = image.resize((width, height), Image.Resampling.NEAREST)
    out = np.full((side, side), NOT_JUDGED, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = np.asarray(small)
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

    @cached_property
    def head(self) -> _head.Head:
        """The linear probe of the training split, fitted on features of clean images.

        Raises:
            HeadwaterError: training labels of fewer than two classes (see :attr:`unlabelled`).
        """
        return linear.fit(self.train)

    @property
    def unlabelled(self) -> str:
        """Why nothing that names images can be measured; empty if it can."""
        for name, part in (("training", self.train), ("test", self.test)):
            if len(np.unique(part.labels[part.labels >= 0])) < 2:
                return f"the {name} images hold labels of fewer than two classes"
        return ""

    def average(self, metric: str, values: Any, rows: Rows, slice_: str = "all") -> Row:
        """The mean of values (B,), one for each of ``rows``, with its interval over groups.

        NaN values, of images that a measure says nothing about, are left out.
        """
        values = np.asarray(values, np.float64)
        live = np.isfinite(values)
        found = _common.difference(values[live], self.rows.groups[rows][live], DRAWS)
        return row(metric, found[0], int(live.sum()), slice_, found[1:])

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
