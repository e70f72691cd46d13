"""What the pictures show, chosen by seed and never by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import bands
from ..artifacts import read_json
from ..types import Array
from . import _images
from ._images import Pixels

NEIGHBOURS = 6
UNLABELLED = "(no label)"


@dataclass(frozen=True)
class Hit:
    """One image of a retrieval row; ``right`` is None where a label is missing."""

    key: str
    label: str
    source: str
    right: bool | None
    cosine: float


@dataclass(frozen=True)
class Map:
    """The labelled points of one split."""

    features: Array
    labels: NDArray[np.str_]
    sources: NDArray[np.str_]


def _read(folder: Path, split: str) -> tuple[pd.DataFrame, Array]:
    index = pd.read_parquet(folder / "index.parquet")
    mine = (index["split"] == split).to_numpy()
    features = np.load(folder / "features.npy", mmap_mode="r")[mine]
    return index[mine].reset_index(drop=True), np.asarray(features, np.float32)


def points(embeddings: Path, limit: int = 1000, seed: int = 0) -> Map:
    """At most ``limit`` held-out images for the map."""
    index, features = _read(embeddings, "test")
    rows = np.arange(len(index))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    part = index.iloc[rows]
    labels = part["label"].fillna(UNLABELLED).to_numpy(str)
    return Map(features[rows], labels, part["source"].to_numpy(str))


def _unit(x: Array) -> Array:
    result: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return result


def retrieval(embeddings: Path, queries: int = 8, seed: int = 0) -> list[tuple[Hit, list[Hit]]]:
    """Held-out queries of different classes and their nearest training images by cosine.

    Groups never straddle the split, so no query finds a copy of itself.
    """
    return neighbours(_read(embeddings, "test"), _read(embeddings, "train"), queries, seed)


def neighbours(
    held_out: tuple[pd.DataFrame, Array],
    training: tuple[pd.DataFrame, Array],
    queries: int,
    seed: int,
) -> list[tuple[Hit, list[Hit]]]:
    """The same of frames with columns sha256, label, source, and features (N, D)."""
    (test, q), (train, gallery) = held_out, training
    order = np.random.default_rng(seed).permutation(len(test))
    known = test.iloc[order].dropna(subset=["label"])
    chosen = known.drop_duplicates("label").index[:queries]
    if not len(chosen):
        chosen = test.index[order[:queries]]
    cosines = _unit(q[chosen]) @ _unit(gallery).T  # (Q, D) @ (D, N) -> (Q, N)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    found = []
    for i, row in enumerate(chosen):
        query = _hit(test.iloc[row], None, 1.0)
        hits = [_hit(train.iloc[j], test.iloc[row], float(cosines[i, j])) for j in nearest[i]]
        found.append((query, hits))
    return found


def _hit(row: pd.Series, query: pd.Series | None, cosine: float) -> Hit:
    known = query is not None and pd.notna(row["label"]) and pd.notna(query["label"])
    right = bool(row["label"] == query["label"]) if known and query is not None else None
    label = UNLABELLED if pd.isna(row["label"]) else str(row["label"])
    return Hit(str(row["sha256"]), label, str(row["source"]), right, cosine)


def patch_maps(
    pretrain: Path, shards: Path, count: int = 8, seed: int = 0, side: int = 96
) -> list[tuple[Pixels, Pixels]]:
    """Pairs of image (side, side, 3) and patch features as colours (h, w, 3).

    The first three principal components of all shown patches together are red, green and blue:
    equal colours mean like features, across images too. Images are encoded at twice the training
    size for a finer grid. Empty for encoders whose grid would be coarser than 4 x 4.
    """
    import torch

    from .. import models
    from ..reader import ShardReader

    meta = read_json(pretrain / "encoder.json")
    reader = ShardReader(shards, "test", 2 * meta["image_size"], cache_bytes=0)
    rows = np.random.default_rng(seed).permutation(len(reader))[:count]
    encoder = models.load(pretrain).eval()
    if reader.side // encoder.stride < 4:
        return []
    batch = reader.take(rows)  # (B, C, S, S)
    with torch.inference_mode():
        patch = encoder(models.preprocess(batch, meta["mean"], meta["std"])).patch
    colours = principal_colours(patch.float().numpy())
    pixels = batch.permute(0, 2, 3, 1).numpy()  # (B, C, S, S) -> (B, S, S, C)
    thumbs = np.ascontiguousarray(bands.to_rgb(pixels))
    return [(_images.resize(t, side), c) for t, c in zip(thumbs, colours, strict=True)]


def principal_colours(patch: Array) -> Pixels:
    """Patch features (B, h, w, D) -> uint8 (B, h, w, 3), each component stretched to its 2-98 %."""
    flat = patch.reshape(-1, patch.shape[-1]).astype(np.float64)  # (B*h*w, D)
    flat = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    top = flat @ vectors[:, :-4:-1]  # the three largest
    low, high = np.percentile(top, [2, 98], axis=0)
    scaled = np.clip((top - low) / np.maximum(high - low, 1e-12), 0, 1)
    result: Pixels = np.rint(scaled * 255).astype(np.uint8).reshape(*patch.shape[:3], 3)
    return result


def duplicates(
    frame: pd.DataFrame, root: Path, groups: int = 12, members: int = 6
) -> list[tuple[str, list[Pixels]]]:
    """Largest duplicate groups with at least two readable members: reason and thumbnails.

    ``frame`` holds rows of curated.parquet. The kept image comes first.
    """
    twins = frame[frame["dup_group"] >= 0]
    near = set(twins.loc[twins["reason"] == "duplicate-near", "dup_group"])
    sizes = twins.groupby("dup_group").size().sort_values(ascending=False, kind="stable")
    # Near duplicates say more than equal bytes: they come first.
    ranked = [g for g in sizes.index if g in near] + [g for g in sizes.index if g not in near]
    found = []
    for group in ranked[: 3 * groups]:
        rows = twins[twins["dup_group"] == group].sort_values("keep", ascending=False)
        thumbs = [_images.from_disk(p, root) for p in rows["path"].head(members)]
        usable = [t for t in thumbs if t is not None]
        if len(usable) > 1:
            found.append(("near" if group in near else "exact", usable))
        if len(found) == groups:
            break
    return found
