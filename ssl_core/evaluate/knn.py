"""Weighted nearest neighbours as in DINO (arXiv 2104.14294, eval_knn.py)."""

from __future__ import annotations

import numpy as np

from ..config import Evaluate
from ..types import Array, Embeddings, Labels
from . import _common

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 1024


def unit(x: Array) -> Array:
    """Rows (N, D) scaled to length one; zero rows stay zero."""
    result: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return result


def votes(
    train: Embeddings,
    features: Array,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Array:
    """Summed weights exp(cosine / T) of the nearest training rows by class: (M, C)."""
    gallery, k = unit(train.features), min(neighbours, len(train))
    out = np.zeros((len(features), len(train.classes)), np.float32)
    for first in range(0, len(features), CHUNK):
        cosine = unit(features[first : first + CHUNK]) @ gallery.T  # (M, D) @ (D, N) -> (M, N)
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        # Less the largest possible cosine: the same vote, and no overflow at small T.
        weight = np.exp((np.take_along_axis(cosine, near, 1) - 1) / temperature)
        row = first + np.arange(len(near))[:, None]
        np.add.at(out, (row, train.labels[near]), weight)
    return out


def predict(train: Embeddings, features: Array) -> Labels:
    """The class with the largest vote, (M,)."""
    best: Labels = votes(train, features).argmax(1).astype(np.int64)
    return best


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """Accuracy by slice.

    Raises:
        HeadwaterError: training labels of fewer than two classes.
    """
    return _common.table(train, test, cfg, predict)
