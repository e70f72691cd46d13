"""alpha-ReQ: how fast the spectrum of the features decays (arXiv 2202.05808)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Embeddings
from . import _common

FIRST, LAST = 11, 100  # eigenvalues that the line is fitted to, counted from 1; LAST at most
LEAST = 10  # eigenvalues; fewer fix no slope
ZERO = 1e-10  # of the largest eigenvalue


def alpha(features: NDArray[np.floating], first: int = FIRST, last: int = LAST) -> float:
    """-slope of log eigenvalue i of the covariance of (N, D) over log i, for first <= i <= last.

    Eigenvalues of zero are left out. NaN where fewer than ``LEAST`` remain in the range. The paper
    holds values near 1 for good. A finite sample of noise has a slope, too.
    """
    x = features.astype(np.float64)
    if not len(x):
        return _common.NAN
    with _common.threads(x.size * x.shape[1]):
        spectrum = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    spectrum = spectrum[spectrum > ZERO * spectrum.max(initial=0)][first - 1 : last]
    if len(spectrum) < LEAST:
        return _common.NAN
    index = np.arange(first, first + len(spectrum))
    return -float(np.polyfit(np.log(index), np.log(spectrum), 1)[0])


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """On the test features, and on noise of their shape; labels play no part."""
    x, n = test.features, len(test)
    if not n:
        return [_common.row("alpha_req", _common.NAN, 0)]
    return [
        _common.row("alpha_req", alpha(x), n),
        _common.row("alpha_req_noise", alpha(_common.noise(x.shape)), n),
    ]
