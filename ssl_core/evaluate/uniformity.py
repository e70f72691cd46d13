"""Uniformity on the sphere (arXiv 2005.10242): do features use the room they have?

Alignment, its counterpart, needs two views of an image: see ``analyse/invariance.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Embeddings
from . import _common

T = 2.0  # the paper's
LIMIT = 5000  # rows, drawn by a fixed seed: pairs grow with their square
CHUNK = 512


def uniformity(features: NDArray[np.floating], t: float = T) -> float:
    """log of the mean of exp(-t |x - y|^2) over pairs of different rows (N, D), of length one.

    0 where all are equal; ``lowest`` where they are spread evenly. NaN with fewer than two rows.
    """
    x = _common.unit(features.astype(np.float64))
    if len(x) > LIMIT:
        x = x[np.random.default_rng(_common.SEED).choice(len(x), LIMIT, replace=False)]
    n = len(x)
    if n < 2:
        return _common.NAN
    with _common.threads(CHUNK * n * x.shape[1]):
        total = 0.0
        for i in range(0, n, CHUNK):
            part = x[i : i + CHUNK]
            kernel = np.exp(2 * t * (part @ x.T - 1))  # (B, N); |x - y|^2 = 2 - 2 cos
            kernel[np.arange(len(part)), np.arange(i, i + len(part))] = 0  # not with itself
            total += float(kernel.sum())
    return float(np.log(total / (n * (n - 1))))


def lowest(width: int, t: float = T) -> float:
    """What the uniform distribution on the sphere in ``width`` dimensions has.

    E exp(2t cos) is the hypergeometric 0F1(; width / 2; t^2), as in the paper.
    """
    from scipy.special import hyp0f1

    return float(np.log(hyp0f1(width / 2, t**2)) - 2 * t)


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """On the test features, beside the lowest there is in their dimension; no labels.

    Noise reaches the lowest: uniformity alone is no quality.
    """
    n, width = test.features.shape
    return [
        _common.row("uniformity", uniformity(test.features), n),
        _common.row("uniformity_lowest", lowest(width), n),
    ]
