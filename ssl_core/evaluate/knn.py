"""Weighted nearest neighbours as in DINO (arXiv 2104.14294, eval_knn.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Array, Embeddings, Labels
from . import _common
from ._common import unit

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 4096  # queries at a time
EXACT_UP_TO = 500_000  # rows; above, cells of an inverted file are searched: a few may be missed
PROBES = 16
SPARE = 100  # neighbours searched beyond those wanted, for images of the same group
Rows = NDArray[np.int64]


def _index(gallery: Array) -> Any:
    """A faiss index of unit rows (N, D) by inner product: exact up to ``EXACT_UP_TO``."""
    import faiss

    index: Any = faiss.IndexFlatIP(gallery.shape[1])
    if len(gallery) > EXACT_UP_TO:
        cells, flat = int(4 * np.sqrt(len(gallery))), index
        index = faiss.IndexIVFFlat(flat, gallery.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.min_points_per_centroid, index.nprobe = 1, 1, PROBES
        index.train(gallery)
    index.add(gallery)
    return index


def search(train: Embeddings, features: Array, neighbours: int) -> tuple[Array, Rows]:
    """Cosines (M, k) of the nearest training rows in descending order, and their numbers.

    k is at most the number of rows. A row is -1, its cosine -inf, where an inverted file found
    fewer.
    """
    k, width = min(neighbours, len(train)), train.features.shape[1]
    with _common.threads(min(CHUNK, len(features)) * len(train) * width):
        index = _index(np.ascontiguousarray(unit(train.features)))
        parts = [
            index.search(np.ascontiguousarray(unit(features[i : i + CHUNK])), k)
            for i in range(0, len(features), CHUNK)
        ]
    empty = (np.empty((0, k), np.float32), np.empty((0, k), np.int64))
    cosine, near = (np.concatenate(side) for side in zip(empty, *parts, strict=True))
    return np.where(near < 0, -np.inf, cosine).astype(np.float32), near


def weigh(train: Embeddings, cosine: Array, near: Rows, temperature: float = TEMPERATURE) -> Array:
    """Summed weights exp(cosine / T) of neighbours (M, k) by class: (M, C)."""
    out = np.zeros((len(near), len(train.classes)), np.float32)
    # Less the largest possible cosine: the same vote, and no overflow at small T.
    weight = np.exp((cosine - 1) / temperature)
    np.add.at(out, (np.arange(len(near))[:, None], train.labels[near]), weight)
    return out


def votes(
    train: Embeddings,
    features: Array,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Array:
    """The vote of the nearest training rows, by class: (M, C)."""
    return weigh(train, *search(train, features, neighbours), temperature)


def left_out(
    e: Embeddings, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Array:
    """Each row's vote by rows of other groups, (N, C): never by itself or a picture of its object.

    An image whose group has more than ``SPARE`` others close by may get fewer neighbours.
    """
    _, code = np.unique(e.groups, return_inverse=True)
    spare = min(int(np.bincount(code).max()), SPARE)
    cosine, near = search(e, e.features, neighbours + spare)
    other = (code[near] != code[:, None]) & (near >= 0)
    chosen = other & (other.cumsum(axis=1) <= neighbours)
    return weigh(e, np.where(chosen, cosine, -np.inf).astype(np.float32), near, temperature)


def predict(train: Embeddings, features: Array) -> Labels:
    """The class with the largest vote, (M,)."""
    best: Labels = votes(train, features).argmax(1).astype(np.int64)
    return best


def sweep(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """Accuracy by number of neighbours, from one search; and of the training rows, left out."""
    cosine, near = search(train, test.features, max(cfg.neighbours, default=1))
    found = []
    for k in cfg.neighbours:
        named = weigh(train, cosine[:, :k], near[:, :k]).argmax(1)
        hit = named == test.labels
        value, *interval = _common.difference(hit, test.groups, cfg.bootstrap)
        found.append(
            _common.row("accuracy", value, len(test), f"neighbours:{k}", (interval[0], interval[1]))
        )
    hit = left_out(train).argmax(1) == train.labels
    value, low, high = _common.difference(hit, train.groups, cfg.bootstrap)
    return [*found, _common.row("accuracy_left_out", value, len(train), interval=(low, high))]


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """Accuracy by slice and by number of neighbours.

    ``accuracy_left_out`` is that of the training images, each named by those of other groups: for
    sets whose test split has few labels.

    Raises:
        HeadwaterError: training labels of fewer than two classes.
    """
    found = _common.table(train, test, cfg, predict)
    return found + sweep(_common.labelled(train), _common.labelled(test), cfg)
