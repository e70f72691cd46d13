"""RankMe, the effective rank of the features (arXiv 2210.02885)."""

from __future__ import annotations

import numpy as np

from ..config import Evaluate
from ..types import Array, Embeddings
from . import _common

EPSILON = 1e-7  # the paper's


def rankme(features: Array) -> float:
    """exp of the entropy of the singular values of (N, D), not centred: 1 to min(N, D).

    NaN where all features are zero. Values compare only at equal N, D and data, and a high rank
    alone is no quality: noise has it too.
    """
    with _common.threads(features.size * features.shape[1]):
        values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    if not values.sum() > 0:
        return _common.NAN
    p = values / values.sum() + EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """One row on the test features; labels play no part."""
    value = rankme(test.features) if len(test) else _common.NAN
    return [
        {
            "slice": "all",
            "metric": "rankme",
            "value": value,
            "low": _common.NAN,
            "high": _common.NAN,
            "n": len(test),
        }
    ]
