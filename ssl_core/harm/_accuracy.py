"""Accuracy from labels: intervals, samples with known inclusion probabilities, and slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._common import Vector

Z = 1.959964  # 95 % intervals
LEAST = 8  # groups on either side below which a slice is not judged


def wilson(hits: float, n: float) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    p, z2 = hits / n, Z * Z
    centre, spread = p + z2 / (2 * n), Z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return (max(0.0, (centre - spread) / (1 + z2 / n)), min(1.0, (centre + spread) / (1 + z2 / n)))


def newcombe(hits: float, n: float, hits0: float, n0: float) -> tuple[float, float]:
    """95 % interval of p - p0 for independent samples (Newcombe 1998, method 10)."""
    (low, high), (low0, high0) = wilson(hits, n), wilson(hits0, n0)
    p, p0 = hits / n, hits0 / n0
    down = ((p - low) ** 2 + (high0 - p0) ** 2) ** 0.5
    up = ((high - p) ** 2 + (p0 - low0) ** 2) ** 0.5
    return p - p0 - down, p - p0 + up


# ---- samples of unequal chance -----------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """An accuracy with its 95 % interval; ``n`` is the size of a simple sample as precise."""

    value: float
    low: float
    high: float
    n: float
    error: float  # standard error


def per_group(values: Vector, groups: NDArray[np.str_]) -> Vector:
    """The mean of ``values`` (N,) within each group: (G,)."""
    _, code = np.unique(groups, return_inverse=True)
    found: Vector = np.bincount(code, values) / np.bincount(code)
    return found


def stratified(
    correct: Vector,
    strata: NDArray[Any],
    sizes: Mapping[Any, float],
    groups: NDArray[np.str_] | None = None,
) -> Estimate:
    """Accuracy of a population of which each stratum was sampled at random.

    The Horvitz-Thompson estimate, after-stratified: sum of share times mean, the share of a
    stratum being its ``sizes`` entry over the total. With one stratum it is the plain mean.

    The interval is for the process the population came from, not for these images alone: with
    every image labelled, n is the number of images. It is Wilson's at the effective sample size
    p (1 - p) / variance (Korn and Graubard 1998); a stratum's variance is taken at (hits + the
    mean) / (n + 1), as a few equal outcomes do not prove that there are no others.

    Args:
        correct: (N,) in [0, 1]. strata: (N,). sizes: images in each stratum that occurs.
        groups: (N,); images of one group are one piece of evidence: n counts groups.
    """
    names, code = np.unique(strata, return_inverse=True)
    p = np.bincount(code, correct) / np.bincount(code)  # (H,)
    units = np.arange(len(code)) if groups is None else np.unique(groups, return_inverse=True)[1]
    pairs = np.unique(np.stack([code, units]), axis=1)
    n = np.bincount(pairs[0]).astype(np.float64)  # (H,)
    size = np.array([float(sizes[name]) for name in names.tolist()])
    share = size / size.sum()
    value = float(np.clip(share @ p, 0.0, 1.0))
    if len(names) == 1:
        low, high = wilson(value * n[0], n[0])
        return Estimate(value, low, high, float(n[0]), float((value * (1 - value) / n[0]) ** 0.5))
    soft = (n * p + value) / (n + 1)
    middle = float(share @ soft)
    within = float((share**2 * soft * (1 - soft) / n).sum())
    between = float((share * (soft - middle) ** 2).sum() / size.sum())
    variance = within + between
    alike = variance <= 1e-12  # every outcome is the same: then any p has the same ratio
    ratio = 1 / (share**2 / n).sum() if alike else middle * (1 - middle) / variance
    effective = float(np.clip(ratio, 1.0, size.sum()))
    low, high = wilson(value * effective, effective)
    return Estimate(value, low, high, effective, variance**0.5)


def of_groups(shares: Vector, images: Vector) -> tuple[float, float]:
    """Accuracy from each group's share of right answers, and how many independent images tell as
    much: p (1 - p) / variance (Korn and Graubard 1998), never more than there are.

    Args:
        shares: (G,) in [0, 1]. images: (G,), how many each is of.
    """
    p, count = float(shares.mean()), len(shares)
    variance = float(shares.var(ddof=1)) / count if count > 1 else 0.0
    effective = p * (1 - p) / variance if variance > 0 else float(count)
    return p, float(np.clip(effective, 1.0, images.sum()))


# ---- slices ------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): rejecting those <= alpha errs anywhere with chance alpha."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(a) for a in adjusted]


def less(hits: float, n: float, hits0: float, n0: float) -> float:
    """One-sided exact p-value that p is below p0 (Fisher 1935); counts are rounded."""
    from scipy.stats import hypergeom

    a, total, a0, total0 = (round(v) for v in (hits, n, hits0, n0))
    return float(hypergeom.cdf(a, total + total0, a + a0, total))


@dataclass(frozen=True)
class Counted:
    """Labelled images: ``correct``, ``groups`` and ``weight`` (N,); ``slices`` kind -> (N,)."""

    correct: Vector
    groups: NDArray[np.str_]
    weight: Vector
    slices: Mapping[str, NDArray[np.str_]]


def _count(side: Counted, mask: NDArray[np.bool_]) -> tuple[float, float, int]:
    """Accuracy, effective size (Kish 1965) and groups of a part: one number per group."""
    if not mask.any():
        return 0.0, 0.0, 0
    right, weight, groups = side.correct[mask], side.weight[mask], side.groups[mask]
    value = float((right * weight).sum() / weight.sum())
    each = per_group(weight, groups)
    return value, float(each.sum() ** 2 / (each**2).sum()), len(each)


def by_slice(
    current: Counted, reference: Counted, alpha: float, min_drop: float
) -> list[dict[str, Any]]:
    """Each slice against the same slice of the reference, or all of it where it has none.

    ``harm``: the loss is proven (Fisher's exact test, Holm over all slices judged, level
    ``alpha``) and exceeds ``min_drop`` at the point estimate. Slices of fewer than ``LEAST``
    groups on either side are left out. Weighted labels count as their effective number.

    One look: over repeated looks at one day use ``_sequence``.
    """
    found = []
    for kind, own in sorted(current.slices.items()):
        theirs = reference.slices.get(kind)
        for name in np.unique(own[own != ""]).tolist():
            row = _slice(current, reference, own == name, theirs, name)
            if row is not None:
                found.append({"slice": f"{kind}:{name}", **row})
    adjusted = holm([f["p_value"] for f in found])
    for row, p in zip(found, adjusted, strict=True):
        row["p_adjusted"] = p
        row["harm"] = bool(p <= alpha and row["difference"] < -min_drop)
    return sorted(found, key=lambda f: (f["p_value"], f["slice"]))


def _slice(
    current: Counted,
    reference: Counted,
    mask: NDArray[np.bool_],
    theirs: NDArray[np.str_] | None,
    name: str,
) -> dict[str, Any] | None:
    value, n, groups = _count(current, mask)
    same = theirs is not None and bool((theirs == name).any())
    other = theirs == name if theirs is not None and same else np.ones(len(reference.correct), bool)
    value0, n0, groups0 = _count(reference, other)
    if min(groups, groups0) < LEAST:
        return None
    low, high = wilson(value * n, n)
    down, up = newcombe(value * n, n, value0 * n0, n0)
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": int(mask.sum()),
        "groups": groups,
        "reference": value0,
        "reference_n": int(other.sum()),
        "against": "same slice" if same else "all",
        "difference": value - value0,
        "difference_low": down,
        "difference_high": up,
        "p_value": less(value * n, n, value0 * n0, n0),
    }
