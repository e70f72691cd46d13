"""Harm proven from labels that keep coming, however often one looks.

The loss of an image, weighted so that its mean is the model's error rate, is bet against: under
"the error rate is at most e" every factor 1 + f (loss / e - 1) has mean at most 1, so a product
of them is an e-process, and the chance that it ever reaches 1/alpha is at most alpha (Ville;
Waudby-Smith and Ramdas, arXiv 2010.09686). Harm with respect to a reference whose accuracy is
itself an estimate is split in two halves of alpha (Podkopaev and Ramdas, arXiv 2110.06177).

Bets f are mixed with weights fixed beforehand, not adapted, so that the result depends on which
labels have come and not on their order: late labels of an early day need no bookkeeping. It is
mixed as well over the day on which harm began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ._common import Vector

BETS = np.geomspace(0.005, 0.99, 40)
YEAR = 366
GRID = 1000  # accuracies tried for a confidence sequence


def wealth(loss: Vector, errors: float | Vector) -> Vector:
    """Log of the product for each bet: H0 says the mean of ``loss`` (N,) >= 0 is <= ``errors``.

    One error gives (J,), errors (E,) give (E, J).
    """
    values, counts = np.unique(loss, return_counts=True)  # few: (U,)
    ratio = values / np.asarray(errors)[..., None]  # (..., U)
    found: Vector = np.einsum(
        "u,...uj->...j", counts.astype(np.float64), np.log1p((ratio - 1)[..., None] * BETS)
    )
    return found


def e_value(loss: Vector, error: float) -> float:
    """The mixture over bets; large values speak against "the mean loss is at most ``error``"."""
    return float(np.exp(np.minimum(_mix(wealth(loss, error)), 700.0)))


def _mix(log: Vector) -> Vector:
    """Log of the mean over the last axis."""
    found: Vector = logsumexp(log, axis=-1) - np.log(log.shape[-1])
    return found


def started(day: Vector) -> Vector:
    """Prior chance that harm has begun by day 1, 2, ...; 1 in the end.

    Half falls off slowly for ever, half is even over the first year, where e^6 suffices.
    """
    found: Vector = 0.5 * (1 - 1 / (day + 1)) + 0.5 * np.minimum(day, YEAR) / YEAR
    return found


@dataclass(frozen=True)
class Evidence:
    """``e_value`` against "no harm on any day"; ``since`` is the likeliest first day (from 1)."""

    e_value: float
    since: int
    n: int


def evidence(days: Sequence[tuple[int, Vector]], error: float) -> Evidence:
    """Of ``days`` (number from 1, losses (N,)): from some day on the mean exceeded ``error``."""
    ordered = sorted(days, key=lambda d: d[0])
    if not ordered:
        return Evidence(1.0, 0, 0)
    logs = np.stack([wealth(losses, error) for _, losses in ordered])
    numbers = np.array([float(number) for number, _ in ordered])
    return combine(numbers, logs, sum(len(losses) for _, losses in ordered))


def combine(numbers: Vector, logs: Vector, n: int) -> Evidence:
    """The same from each day's log wealth (K, J), days ``numbers`` (K,) ascending.

    A start on any day between two labelled ones gives the same product: their weights add up.
    """
    terms = _mix(logs[::-1].cumsum(axis=0)[::-1])  # (K,): from that day on
    by = started(numbers)
    values = np.exp(np.minimum(terms, 650.0)) * np.diff(by, prepend=0.0)
    not_yet = 1.0 - float(by[-1])
    return Evidence(float(values.sum()) + not_yet, int(numbers[int(values.argmax())]), n)


def floor(hits: float, n: float, alpha: float) -> float:
    """One-sided exact lower bound of a proportion (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return float(beta.ppf(alpha, hits, n - hits + 1)) if hits > 0 else 0.0


def allowed_error(hits: float, n: float, alpha: float, min_drop: float) -> float:
    """The largest error rate that is no harm, given a reference right on ``hits`` of ``n``.

    At level ``alpha / 2`` the reference's accuracy is not below its bound; what remains of alpha
    is for the labels: harm is proven at an e-value of 2 / alpha.
    """
    return float(np.clip(1 - floor(hits, n, alpha / 2) + min_drop, 1e-3, 1.0))


def interval(loss: Vector, alpha: float, bound: float = 1.0) -> tuple[float, float]:
    """Accuracies not refuted: holds at all looks at growing labels together, chance 1 - alpha.

    ``loss`` (N,) in [0, bound]; bound is the largest weight. Two mixtures, each at alpha / 2, on
    a grid of accuracies; the ends are rounded outwards.
    """
    if not len(loss):
        return 0.0, 1.0
    errors = np.arange(1, GRID) / GRID  # (E,)
    # Against "error <= e" as above; against "error >= e" the same with bound - loss.
    against = np.maximum(_mix(wealth(loss, errors)), _mix(wealth(bound - loss, bound - errors)))
    kept = errors[against < np.log(2 / alpha)]
    if not len(kept):  # between two points of the grid
        kept = np.clip(loss.mean(keepdims=True), 0.0, 1.0)
    low, high = 1 - kept.max() - 1 / GRID, 1 - kept.min() + 1 / GRID
    return max(0.0, float(low)), min(1.0, float(high))
