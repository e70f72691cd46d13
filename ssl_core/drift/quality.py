"""Whether what comes in is as it was: unreadable files, light, sharpness, colour, size.

A camera that fogs or a client that sends thumbnails shows here by name, whatever the encoder
makes of it. Each column is compared by itself (Kolmogorov–Smirnov; two shares for a column of
two values), Benjamini–Hochberg over columns, permuted as a whole as in ``ks``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import HeadwaterError
from ..types import Score
from ._common import LIMIT, Groups, Matrix, Pile, check_shapes, pile, simes, test
from ._ks import p_values

SEES = "quality"
COLUMNS = ("rejected", "brightness", "contrast", "sharpness", "colour", "bytes")
LEAST = 4
RATE = 0.05


def check_quality(reference: ArrayLike, current: ArrayLike) -> tuple[Matrix, Matrix]:
    """Both samples as float64 (N, 6) and (M, 6).

    Raises:
        HeadwaterError: other shapes, too few rows, ``rejected`` not 0 or 1, or a readable image
            without its numbers.
    """
    pair = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    check_shapes(pair, LEAST)
    if pair[0].shape[1] != len(COLUMNS):
        rule = f"does not hold the columns {', '.join(COLUMNS)}"
        raise HeadwaterError(f"shape {pair[0].shape}", rule, "predict this partition again")
    for x in pair:
        bad = np.isnan(x[:, 0]) | (~np.isin(x[:, 0], (0, 1)))
        if (bad | ((x[:, 0] == 0) & ~np.isfinite(x).all(axis=1))).any():
            raise HeadwaterError("quality", "is not finite", "predict this partition again")
    return pair


def middles(heap: Pile) -> dict[str, list[float | None]]:
    """The mean of ``rejected`` and the medians of the rest, by column: reference, current."""
    found: dict[str, list[float | None]] = {}
    for i, name in enumerate(COLUMNS):
        parts = [heap.rows[heap.truth == side, i] for side in (1, 0)]
        seen = [p[~np.isnan(p)] for p in parts]
        middle = np.mean if i == 0 else np.median
        found[name] = [float(middle(s)) if len(s) else None for s in seen]
    return found


def score(
    reference: ArrayLike,
    current: ArrayLike,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare (N, 6) with (M, 6). ``statistic`` is -log10 of the smallest adjusted p-value.

    ``details["changed"]`` names the columns that Benjamini–Hochberg rejects at 5 %, ``middle``
    gives each column's typical value on both sides.

    Raises:
        HeadwaterError: see :func:`check_quality`.
    """
    from scipy.stats import false_discovery_control

    sides = check_quality(reference, current)
    heap = pile(sides, groups, LIMIT, rng)

    def statistic(marks: Matrix) -> Matrix:
        result: Matrix = -np.log10(np.maximum(simes(p_values(heap.rows, marks)), 1e-300))
        return result

    observed, p = test(heap, statistic, rng, permutations)
    adjusted = false_discovery_control(p_values(heap.rows, heap.truth[:, None])[:, 0])
    changed = [c for c, q in zip(COLUMNS, adjusted, strict=True) if q <= RATE]
    about: dict[str, Any] = {"changed": changed, "middle": middles(heap)}
    return Score(observed, p, len(sides[1]), {**heap.about(permutations), **about})
