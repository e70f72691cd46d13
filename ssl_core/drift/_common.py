"""What all detectors share: checked input, subsamples, random relabellings, the p-value."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import HeadwaterError

Matrix = NDArray[np.float64]
TIE = 1e-9  # equal statistics may differ by rounding: then they count as equal


def check(reference: ArrayLike, current: ArrayLike, least: int) -> tuple[Matrix, Matrix]:
    """Both samples as float64 (N, D) and (M, D).

    Raises:
        HeadwaterError: other shapes, fewer than ``least`` rows, or values that are not finite.
    """
    pair = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    shapes = [x.shape for x in pair]
    if any(x.ndim != 2 for x in pair) or shapes[0][1] != shapes[1][1]:
        rule = "are not two sets of features of one width"
        raise HeadwaterError(f"shapes {shapes}", rule, "compare features of one model")
    if min(len(x) for x in pair) < least:
        rule = f"are too few to compare: {least} on each side are needed"
        sizes = f"{shapes[0][0]} and {shapes[1][0]} rows"
        raise HeadwaterError(sizes, rule, "wait for more images")
    if not all(np.isfinite(x).all() for x in pair):
        raise HeadwaterError("features", "are not finite", "predict this partition again")
    return pair


def subsample(
    reference: Matrix, current: Matrix, limit: int, rng: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """At most ``limit`` rows in all, drawn without replacement; the smaller side is spared."""
    n, m = len(reference), len(current)
    if n + m <= limit:
        return reference, current
    small = min(n, m, limit // 2)
    keep_n, keep_m = (small, limit - small) if n <= m else (limit - small, small)
    return _draw(reference, keep_n, rng), _draw(current, keep_m, rng)


def _draw(x: Matrix, count: int, rng: np.random.Generator) -> Matrix:
    return x[rng.choice(len(x), min(count, len(x)), replace=False)]


def relabellings(ones: int, total: int, count: int, rng: np.random.Generator) -> Matrix:
    """Indicator columns (total, count), each with ``ones`` ones at uniformly random places."""
    order = rng.random((count, total)).argpartition(ones - 1, axis=1)[:, :ones]
    marks = np.zeros((count, total))
    np.put_along_axis(marks, order, 1.0, axis=1)
    return marks.T


def p_value(observed: float, permuted: Matrix) -> float:
    """(1 + #{permuted >= observed}) / (1 + P) for ``permuted`` (P,); ties count as exceeding."""
    slack = TIE * (abs(observed) + float(np.abs(permuted).max(initial=0.0)))
    return float((1 + np.sum(permuted >= observed - slack)) / (1 + len(permuted)))
