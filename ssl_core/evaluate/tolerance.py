"""Tolerance to meaning: how close images of one class are (arXiv 2012.09740). Needs labels.

A low temperature spreads features evenly, and images of a class apart: more uniform, less
tolerant. So it is read beside ``uniformity``, and beside the cosine of different classes, which
rises likewise where all features point the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Embeddings, Labels
from . import _common


def cosines(features: NDArray[np.floating], labels: Labels) -> tuple[float, float]:
    """Mean cosine over pairs of different rows (N, D) of one class, and of two classes.

    NaN where there is no such pair. From sums: |sum x|^2 holds every pair's cosine twice.
    """
    x = _common.unit(features.astype(np.float64))
    if not len(x):
        return _common.NONE
    _, own, count = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), x.shape[1]))
    np.add.at(sums, own, x)
    alone = float((x**2).sum())  # each row with itself
    within = float((sums**2).sum()) - alone
    everything = float((sums.sum(axis=0) ** 2).sum()) - alone
    same = int((count * (count - 1)).sum())
    different = len(x) * (len(x) - 1) - same
    return (
        within / same if same else _common.NAN,
        (everything - within) / different if different else _common.NAN,
    )


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """On the labelled test images; NaN without labels."""
    test = _common.labelled(test)
    same, different = cosines(test.features, test.labels)
    return [
        _common.row("tolerance", same, len(test)),
        _common.row("tolerance_between", different, len(test)),
    ]
