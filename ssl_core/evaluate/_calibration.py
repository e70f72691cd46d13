"""Are probabilities right? Calibration error, Brier score and negative log-likelihood."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import Array, Labels
from . import _common
from ._common import Matrix, Row

BINS = 15  # of equal mass (arXiv 1904.01685): few bins are empty or crowded
FLOOR = 200  # simulated heads that are calibrated


def _bins(confidence: Matrix) -> NDArray[np.int64]:
    """Bin (N,) of each image: ``BINS`` of equal size by confidence, fewer if there are fewer."""
    n = len(confidence)
    out = np.empty(n, np.int64)
    out[np.argsort(confidence, kind="stable")] = np.arange(n) * min(BINS, n) // n
    return out


def _ece(excess: Matrix, count: Matrix) -> Matrix:
    """Expected calibration error (B,) from (B, bins) sums of confidence - hit; count is (B,)."""
    found: Matrix = np.abs(excess).sum(axis=1) / count
    return found


def ece(
    confidence: Matrix, right: NDArray[np.bool_], groups: NDArray[np.str_], draws: int
) -> tuple[_common.Interval, _common.Interval]:
    """Expected calibration error (arXiv 1706.04599), and its floor: what calibrated heads show.

    Sums of absolute values grow with noise, so no head reaches 0: the floor is mean and 95 % range
    of heads that are right as often as they say, at these confidences. The interval is of the
    value one expects at this number of images; draws are shifted to undo their own noise.
    """
    bins = _bins(confidence)
    order, (_, code) = np.argsort(bins, kind="stable"), np.unique(groups, return_inverse=True)
    starts = np.searchsorted(bins[order], np.arange(bins.max() + 1))
    rng, n = np.random.default_rng(_common.SEED), np.array([float(len(bins))])
    excess = np.add.reduceat((confidence - right)[order], starts)[None]
    value, floor, own = float(_ece(excess, n)[0]), [], confidence[order]
    for _ in range(FLOOR):
        lucky = np.add.reduceat(own - (rng.random(len(own)) < own), starts)[None]
        floor.append(_ece(lucky, n)[0])
    chance = (float(np.mean(floor)), *_common.spread(np.array(floor)))
    totals = np.zeros((int(code.max()) + 1, len(starts) + 1))
    np.add.at(totals, (code, bins), confidence - right)
    totals[:, -1] = np.bincount(code)
    if len(totals) < 2:
        return (value, *_common.NONE), chance
    drawn = _common.resample(totals, draws, _common.SEED)
    sample = _ece(drawn[:, :-1], drawn[:, -1])
    low, high = _common.spread(sample - sample.mean() + value)
    return (value, max(low, 0.0), high), chance


def rows(name: str, p: Array, target: Labels, groups: NDArray[np.str_], draws: int) -> list[Row]:
    """``ece``, ``ece_floor``, ``brier`` (0 to 2) and ``nll`` of a slice.

    Args:
        p: (N, C), rows sum to one.
        target: (N,) columns of ``p``; -1 for a class that the head does not know. Such an image
            is an error with probability 0 for the truth; it has no finite log-likelihood and is
            left out there.
    """
    metrics = ("ece", "ece_floor", "brier", "nll")
    if not len(p):
        return [_common.row(metric, _common.NAN, 0, name) for metric in metrics]
    wide, known = p.astype(np.float64), target >= 0
    own = np.where(known, wide[np.arange(len(wide)), target], 0.0)
    brier = (wide**2).sum(axis=1) - 2 * own + 1
    surprise = -np.log(np.maximum(own[known], 1e-30))
    found = [
        *ece(wide.max(axis=1), wide.argmax(axis=1) == target, groups, draws),
        _common.difference(brier, groups, draws),
        _common.difference(surprise, groups[known], draws),
    ]
    counts = (len(p), len(p), len(p), len(surprise))
    return [
        _common.row(metric, value, n, name, (low, high))
        for metric, (value, low, high), n in zip(metrics, found, counts, strict=True)
    ]
