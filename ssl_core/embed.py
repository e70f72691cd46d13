"""Frozen features: compute, store, load, and the baselines every encoder is held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from . import models
from .artifacts import atomic_file, read_json, write_json
from .errors import HeadwaterError
from .job import device, use_bf16
from .reader import ShardReader
from .types import Array, Embeddings

INDEX = ["split", "key", "label", "group", "source"]


@torch.inference_mode()
def forward(
    encoder: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Pooled features of one batch: uint8 (B, C, S, S) -> float32 (B, D)."""
    dev = next(encoder.parameters()).device
    return forward_views(encoder, models.preprocess(images.to(dev), mean, std))


@torch.inference_mode()
def forward_views(encoder: nn.Module, x: Tensor) -> Array:
    """Pooled features of normalised images: (B, C, S, S) on the device -> float32 (B, D)."""
    dev, x = x.device, x.to(memory_format=torch.channels_last)
    with torch.autocast(dev.type, torch.bfloat16, enabled=use_bf16("auto", dev)):
        out = encoder(x)
    return np.asarray(getattr(out, "pooled", out).float().cpu().numpy(), dtype=np.float32)


def ready(encoder: nn.Module) -> nn.Module:
    """On the device, in eval mode, in the memory format convolutions are fastest in."""
    dev, form = device(), torch.channels_last  # the stub knows either, not both
    moved: nn.Module = encoder.to(dev, memory_format=form)  # type: ignore[call-overload]
    return moved.eval()


def compute(
    encoder: nn.Module,
    reader: ShardReader,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 512,
) -> Array:
    """Pooled features of all samples in the reader's order: (N, D) float32.

    ``encoder`` maps normalised (B, C, S, S) to (B, D) or to an EncoderOutput with ``pooled``.
    """
    encoder = ready(encoder)
    batches = reader.sequential(batch_size)
    return np.concatenate([forward(encoder, images, mean, std) for _, images in batches])


def pixels(reader: ShardReader, side: int = 16) -> Array:
    """Raw-pixel baseline: centred channels averaged to ``side`` squared, (N, C*side*side)."""
    parts = []
    for _, images in reader.sequential(512):
        small = F.adaptive_avg_pool2d(images.float() / 255 - 0.5, side)
        parts.append(small.flatten(1).numpy())  # (B, C, side, side) -> (B, C*side*side)
    return np.concatenate(parts)


def baseline(name: str, reader: ShardReader, meta: dict[str, Any], seed: int) -> Array:
    """Features of a reference without our pretraining, rows in the reader's order.

    ``random``: the architecture of encoder.json (``meta``), untrained; ``pixels``.

    Raises:
        HeadwaterError: neither of these.
    """
    if name == "pixels":
        return pixels(reader)
    if name != "random":
        rule = "is not one of random, pixels, seed"
        raise HeadwaterError(f"evaluate.baselines '{name}'", rule, "correct params.yaml")
    torch.manual_seed(seed)
    encoder = models.create(meta["model_name"], meta["args"])
    return compute(encoder, reader, tuple(meta["mean"]), tuple(meta["std"]))


def save_array(path: Path, features: Array) -> None:
    """Write one .npy atomically."""
    with atomic_file(path) as temp, temp.open("wb") as stream:
        np.save(stream, features.astype(np.float32))


def save(folder: Path, features: Array, frame: pd.DataFrame, classes: list[str]) -> None:
    """Write features.npy, index.parquet and classes.json into an existing folder."""
    save_array(folder / "features.npy", features)
    table = frame[INDEX].rename(columns={"key": "sha256"})
    table.to_parquet(folder / "index.parquet", engine="pyarrow", index=False)
    write_json(folder / "classes.json", classes)


def frame(table: pd.DataFrame, classes: list[str]) -> Embeddings:
    """Rows of a shard index as Embeddings without features yet: (N, 0)."""
    names = table.rename(columns={"key": "sha256"})
    codes = pd.Categorical(names["label"], categories=classes).codes
    text = names[["sha256", "group", "source"]].astype(str)
    return Embeddings(
        np.zeros((len(names), 0), np.float32),
        codes.astype(np.int64),
        tuple(classes),
        text["sha256"].to_numpy(str),
        text["group"].to_numpy(str),
        text["source"].to_numpy(str),
    )


def with_features(embeddings: Embeddings, features: Array) -> Embeddings:
    """The same rows seen by another encoder."""
    return replace(embeddings, features=features)


def rows(embeddings: Embeddings, mask: NDArray[Any]) -> Embeddings:
    """The rows where ``mask`` (N,) is true, or of these numbers."""
    e = embeddings
    return Embeddings(
        e.features[mask],
        e.labels[mask],
        e.classes,
        e.sha256[mask],
        e.groups[mask],
        e.sources[mask],
    )


def load(folder: Path, split: str | None) -> Embeddings:
    """Read one split (None: all) of a folder written by :func:`save`."""
    table = pd.read_parquet(folder / "index.parquet")
    whole = with_features(
        frame(table, read_json(folder / "classes.json")), np.load(folder / "features.npy")
    )
    return whole if split is None else rows(whole, (table["split"] == split).to_numpy())
