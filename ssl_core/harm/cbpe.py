"""Confidence-based performance estimation (NannyML's idea): the mean calibrated confidence.

Calibrated by Platt's curve on the reference: P(right) = sigmoid(a logit(confidence) + b). Two
numbers can be had from a few hundred images, and the curve says something where the reference
has no image; isotonic steps do neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit

from ..types import Array
from ._common import Outputs, Vector, outcomes

EDGE = 1e-6  # confidences are kept so far from 0 and 1
RIDGE = 1e-4  # where all confidences are equal, slope and offset are not determined
STEPS, TOLERANCE = 50, 1e-12


def _logit(confidence: Vector) -> Vector:
    p = np.clip(confidence, EDGE, 1 - EDGE)
    result: Vector = np.log(p / (1 - p))
    return result


def calibrate(confidence: Vector, correct: Vector) -> Callable[[Vector], Vector]:
    """Platt's curve (1999), with his smoothed targets: confidence (M,) -> P(right) (M,).

    Newton's method from a = 1, b = 0: the bootstrap needs hundreds of fits.
    """
    right = float(correct.sum())
    high, low = (right + 1) / (right + 2), 1 / (len(correct) - right + 2)
    target = np.where(correct > 0.5, high, low)
    x = np.stack([_logit(confidence), np.ones(len(confidence))], axis=1)  # (N, 2)
    w = np.array([1.0, 0.0])
    loss = _loss(x, target, w)
    for _ in range(STEPS):
        p = expit(x @ w)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (p - target) + RIDGE * w)
        scale = 1.0
        while (new := _loss(x, target, w - scale * step)) > loss and scale > 1e-4:
            scale /= 2
        if new > loss - TOLERANCE * len(x):
            break
        w, loss = w - scale * step, new

    def curve(current: Vector) -> Vector:
        result: Vector = expit(w[0] * _logit(current) + w[1])
        return result

    return curve


def _loss(x: Vector, target: Vector, w: Vector) -> float:
    z = x @ w
    return float((np.logaddexp(0, z) - target * z).sum() + RIDGE / 2 * (w @ w))


def estimate(reference: Outputs, current: Outputs) -> float:
    """Mean of the calibrated confidences.

    Raises:
        HeadwaterError: a reference without known outcomes.
    """
    curve = calibrate(reference.confidence, outcomes(reference))
    return float(curve(current.confidence).mean())


def confusion(reference: Outputs, current: Outputs, probabilities: Array) -> Vector:
    """Expected confusion matrix (C, C) of the current images: rows are classes as named.

    ``probabilities`` (M, C) are of the current images. The named class gets its calibrated
    share, the others what is left, in proportion. Its trace over its sum is the estimate.

    Raises:
        HeadwaterError: a reference without known outcomes.
    """
    curve = calibrate(reference.confidence, outcomes(reference))
    top = curve(current.confidence)
    rows, named = np.arange(len(top)), probabilities.argmax(1)
    rest = probabilities.astype(np.float64)
    rest[rows, named] = 0
    total = rest.sum(axis=1, keepdims=True)
    even = np.full_like(rest, 1 / max(1, rest.shape[1] - 1))
    even[rows, named] = 0
    spread = np.where(total > 0, rest / np.where(total > 0, total, 1), even)
    shares = spread * (1 - top)[:, None]
    shares[rows, named] = top
    matrix = np.zeros((rest.shape[1], rest.shape[1]))
    np.add.at(matrix, named, shares)
    return matrix


def by_class(matrix: Vector, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Expected precision and recall of every class that was named, from :func:`confusion`.

    Recall is None where next to no image of the class is expected.
    """
    named, expected, hit = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    return {
        classes[i]: {
            "named": round(float(named[i])),
            "expected": float(expected[i]),
            "precision": float(hit[i] / named[i]),
            "recall": float(hit[i] / expected[i]) if expected[i] >= 0.5 else None,
        }
        for i in np.flatnonzero(named)
    }
