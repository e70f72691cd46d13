"""What all detectors share: checked input, one shuffled pile of both samples, the permutation test.

A detector is exact if all it does before the test (components, clusters, kernel width) looks at
the pile alone and not at which rows are the reference's. The pile is shuffled, so that not even
the order of rows tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import HeadwaterError

Matrix = NDArray[np.float64]
Rows = NDArray[np.int64]
Groups = tuple[ArrayLike, ArrayLike]
Statistic = Callable[[Matrix], Matrix]  # indicators of the reference (N, P) -> values (P,)

TIE = 1e-9  # equal statistics may differ by rounding: then they count as equal
DEEPER = 20  # times as many relabellings where none of the first reaches the observed value
CELLS = 4_000_000  # of an indicator matrix: bounds memory
LIMIT = 2000  # rows in all that most detectors look at


class TooFew(HeadwaterError):
    """There is not enough to compare; more images would do."""


def check(reference: ArrayLike, current: ArrayLike, least: int) -> tuple[Matrix, Matrix]:
    """Both samples as float64 (N, D) and (M, D).

    Raises:
        TooFew: fewer than ``least`` rows on a side.
        HeadwaterError: other shapes, or values that are not finite.
    """
    pair = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    check_shapes(pair, least)
    if not all(np.isfinite(x).all() for x in pair):
        raise HeadwaterError("features", "are not finite", "predict this partition again")
    return pair


def check_shapes(pair: tuple[NDArray[Any], NDArray[Any]], least: int) -> None:
    """Refuse what is not two matrices of one width with ``least`` rows each.

    Raises:
        TooFew: fewer rows.
        HeadwaterError: other shapes.
    """
    shapes = [x.shape for x in pair]
    if any(x.ndim != 2 for x in pair) or shapes[0][1] != shapes[1][1]:
        rule = "are not two sets of features of one width"
        raise HeadwaterError(f"shapes {shapes}", rule, "compare features of one model")
    if min(len(x) for x in pair) < least:
        rule = f"are too few to compare: {least} on each side are needed"
        sizes = f"{shapes[0][0]} and {shapes[1][0]} rows"
        raise TooFew(sizes, rule, "wait for more images")


# ---- the pile ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pile:
    """Both samples, shuffled. ``unit`` numbers what is relabelled together."""

    rows: NDArray[Any]  # (N, D)
    unit: Rows  # (N,), 0 .. U-1
    first: NDArray[np.bool_]  # (U,) whether a unit is the reference's
    stratum: Rows  # (U,) units are relabelled within their stratum only
    origin: Rows  # (N,) row within its own sample, before shuffling
    thinned: bool

    @property
    def truth(self) -> Matrix:
        """Indicator (N,) of the reference's rows."""
        return self.first[self.unit].astype(np.float64)

    def draw(self, count: int, rng: np.random.Generator) -> Matrix:
        """``count`` random relabellings as indicators (N, count)."""
        marks = np.empty((len(self.first), count))
        for s in range(int(self.stratum.max()) + 1):
            own = np.flatnonzero(self.stratum == s)
            marks[own] = relabellings(int(self.first[own].sum()), len(own), count, rng)
        return marks if len(marks) == len(self.unit) else marks[self.unit]

    def about(self, permutations: int) -> dict[str, Any]:
        """Details that every detector gives."""
        n = int(self.truth.sum())
        return {
            "reference_rows": n,
            "current_rows": len(self.rows) - n,
            "units": len(self.first),
            "subsampled": self.thinned,
            "permutations": permutations,
        }


def codes(pair: tuple[NDArray[Any], NDArray[Any]], groups: Groups | None) -> tuple[Rows, Rows]:
    """The number of each row's unit (N,), (M,), by side from 0.

    Raises:
        HeadwaterError: not one group for each row.
    """
    if groups is None:
        return np.arange(len(pair[0])), np.arange(len(pair[1]))
    named = np.asarray(groups[0]), np.asarray(groups[1])
    if any(g.shape != x.shape[:1] for g, x in zip(named, pair, strict=True)):
        shapes = [g.shape for g in named]
        raise HeadwaterError(f"groups {shapes}", "are not one for each row", "pass both samples'")
    first, second = (np.unique(g, return_inverse=True)[1].ravel() for g in named)
    return first, second


def sizes(code: tuple[Rows, Rows]) -> tuple[tuple[int, int], float]:
    """Units of each side, and the mean number of rows of a unit over both.

    A rule that looked at each side's own rows would not treat all relabellings alike.
    """
    n, m = (int(c.max()) + 1 for c in code)
    return (n, m), (len(code[0]) + len(code[1])) / (n + m)


def pile(
    pair: tuple[NDArray[Any], NDArray[Any]],
    groups: Groups | None,
    limit: int,
    rng: np.random.Generator,
) -> Pile:
    """Thin both samples to about ``limit`` rows in all, by whole units, and shuffle them."""
    code = codes(pair, groups)
    units, size = sizes(code)
    keep = shares(units, limit, size)
    chosen = [rng.permutation(u)[:k] for u, k in zip(units, keep, strict=True)]
    kept = [np.flatnonzero(np.isin(c, t)) for c, t in zip(code, chosen, strict=True)]
    origin = np.concatenate(kept)
    side = np.r_[np.zeros(len(kept[0]), np.int64), np.ones(len(kept[1]), np.int64)]
    label = np.concatenate([code[0][kept[0]], units[0] + code[1][kept[1]]])
    order = rng.permutation(len(origin))
    _, unit = np.unique(label[order], return_inverse=True)
    unit = rng.permutation(int(unit.max()) + 1)[unit.ravel()]
    first = np.zeros(int(unit.max()) + 1, np.bool_)
    first[unit[side[order] == 0]] = True
    rows = np.concatenate([x[k] for x, k in zip(pair, kept, strict=True)])[order]
    if groups is None:  # units are the rows: their numbers may follow the rows
        first, unit = first[unit], np.arange(len(unit))
    stratum = np.zeros(len(first), np.int64)
    return Pile(rows, unit, first, stratum, origin[order], keep != units)


def shares(units: tuple[int, int], limit: int, size: float) -> tuple[int, int]:
    """How many units, of ``size`` rows on average, to keep of each side for about ``limit`` rows;
    the smaller side is spared."""
    n, m = units
    total = max(2, int(limit / size))
    if n + m <= total:
        return n, m
    small = min(n, m, total // 2)
    return (small, min(m, total - small)) if n <= m else (min(n, total - small), small)


def relabellings(ones: int, total: int, count: int, rng: np.random.Generator) -> Matrix:
    """Indicator columns (total, count), each with ``ones`` ones at uniformly random places."""
    marks = np.zeros((count, total))
    fewer, value = (ones, 1.0) if 2 * ones <= total else (total - ones, 0.0)
    if value == 0.0:
        marks[:] = 1.0
    if fewer:
        order = rng.random((count, total), np.float32).argpartition(fewer - 1, axis=1)[:, :fewer]
        np.put_along_axis(marks, order, value, axis=1)
    return marks.T


# ---- the test ----------------------------------------------------------------------------------


def exceeding(observed: float, permuted: Matrix) -> int:
    """How many of ``permuted`` (P,) reach the observed value; ties count as reaching it."""
    slack = TIE * (abs(observed) + float(np.abs(permuted).max(initial=0.0)))
    return int(np.sum(permuted >= observed - slack))


def p_value(observed: float, permuted: Matrix) -> float:
    """(1 + #{permuted >= observed}) / (1 + P) for ``permuted`` (P,)."""
    return (1 + exceeding(observed, permuted)) / (1 + len(permuted))


def test(
    heap: Pile, statistic: Statistic, rng: np.random.Generator, permutations: int
) -> tuple[float, float]:
    """The observed statistic and its permutation p-value; large values speak against the null.

    If none of the relabellings reaches the observed value, ``DEEPER`` times as many are drawn:
    p = (1 + g) / (1 + DEEPER P), but at most 1 / (1 + P). Still valid: below 1 / (1 + P) it is
    the p-value of the longer test, from there on that of the shorter (Besag & Clifford 1991 stop
    on the other side). A small p is dear to compute and only then needed.
    """
    observed = float(statistic(heap.truth[:, None])[0])
    hits = _count(heap, statistic, observed, permutations, rng)
    if hits:
        return observed, (1 + hits) / (1 + permutations)
    hits = _count(heap, statistic, observed, (DEEPER - 1) * permutations, rng)
    deep = (1 + hits) / (1 + DEEPER * permutations)
    return observed, min(deep, 1 / (1 + permutations))


def _count(
    heap: Pile, statistic: Statistic, observed: float, count: int, rng: np.random.Generator
) -> int:
    step = max(1, CELLS // len(heap.rows))
    sizes = [min(step, count - i) for i in range(0, count, step)]
    return sum(exceeding(observed, statistic(heap.draw(s, rng))) for s in sizes)


# ---- what more than one detector computes ------------------------------------------------------


def components(pooled: Matrix, most: int) -> Matrix:
    """Whitened principal components (N, D) -> (N, <= most); constant directions are left out."""
    centred = pooled - pooled.mean(axis=0)
    n, d = centred.shape
    if n < d:  # the Gram matrix has the same non-zero eigenvalues, and is smaller
        values, vectors = _largest(centred @ centred.T / n, most)
        return vectors * n**0.5 if len(values) else np.zeros((n, 0))
    values, vectors = _largest(centred.T @ centred / n, most)
    result: Matrix = (centred @ vectors) / values**0.5
    return result


def _largest(square: Matrix, most: int) -> tuple[Matrix, Matrix]:
    from scipy.linalg import eigh

    n = len(square)
    span = (max(0, n - most), n - 1)
    values, vectors = eigh(square, subset_by_index=span, driver="evr")  # ascending
    live = values > max(values[-1], 0) * 1e-10
    return values[live], vectors[:, live]


def chi_square(onehot: Matrix, marks: Matrix) -> Matrix:
    """Pearson's statistic (P,) of the 2 x K tables of counts.

    Args:
        onehot: (N, K), the cell of each row.
        marks: (N, P), 1 on the reference's rows.
    """
    totals = onehot.sum(axis=0)[:, None]  # (K, 1)
    counts = onehot.T @ marks  # (K, N) @ (N, P) -> (K, P)
    share = counts.sum(axis=0) / totals.sum()
    expected = totals * share  # (K, P)
    spread = np.maximum(totals * share * (1 - share), 1e-12)
    result: Matrix = ((counts - expected) ** 2 / spread).sum(axis=0)
    return result


def simes(p: Matrix) -> Matrix:
    """Smallest Benjamini–Hochberg adjusted p-value (P,) of each column of ``p`` (K, P)."""
    ranks = np.arange(1, len(p) + 1)[:, None]
    result: Matrix = (np.sort(p, axis=0) * len(p) / ranks).min(axis=0)
    return result
