"""RankMe, the effective rank of the features (arXiv 2210.02885)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Embeddings
from . import _common

EPSILON = 1e-7  # the paper's


def rankme(features: NDArray[np.floating]) -> float:
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
    """On the test features as they are, centred, and on noise of their shape; no labels."""
    x, n = test.features, len(test)
    if not n:
        return [_common.row("rankme", _common.NAN, 0)]
    return [
        _common.row("rankme", rankme(x), n),
        _common.row("rankme_centred", rankme(x - x.mean(axis=0)), n),
        _common.row("rankme_noise", rankme(_common.noise(x.shape)), n),
    ]
