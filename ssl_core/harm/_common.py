"""What the estimators share: outputs, their bootstrap intervals, and the record of their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import plugins
from ..errors import HeadwaterError

Vector = NDArray[np.float64]
DRAWS = 200
LEVEL = 0.95


@dataclass(frozen=True)
class Outputs:
    """What a model said about N images: ``confidence`` (N,) in [0, 1] of the class it named.

    ``groups`` (N,) are the units of the bootstrap; ``correct`` (N,) is 1 or 0, or None if unknown.
    """

    confidence: Vector
    groups: NDArray[np.str_]
    correct: Vector | None = None

    def __len__(self) -> int:
        return len(self.confidence)

    def take(self, rows: NDArray[np.int64]) -> Outputs:
        """The rows (M,), in that order and as often as they are named."""
        right = None if self.correct is None else self.correct[rows]
        return Outputs(self.confidence[rows], self.groups[rows], right)


def outcomes(reference: Outputs) -> Vector:
    """The known outcomes of a reference.

    Raises:
        HeadwaterError: there are none.
    """
    if reference.correct is None or not len(reference):
        rule = "hold no known outcome"
        raise HeadwaterError("reference images", rule, "promote a model with labelled test images")
    return reference.correct


def resampler(groups: NDArray[np.str_]) -> Callable[[np.random.Generator], NDArray[np.int64]]:
    """Draws groups with replacement; each call gives the rows of one draw."""
    _, code = np.unique(groups, return_inverse=True)
    order, counts = np.argsort(code, kind="stable"), np.bincount(code)
    starts = np.cumsum(counts) - counts  # where each group begins in ``order``

    def draw(rng: np.random.Generator) -> NDArray[np.int64]:
        chosen = rng.integers(0, len(counts), len(counts))
        sizes = counts[chosen]
        ends = np.cumsum(sizes)
        first = np.repeat(starts[chosen] - (ends - sizes), sizes)  # (G,) -> (M,)
        drawn: NDArray[np.int64] = order[first + np.arange(len(first))]
        return drawn

    return draw


def estimates(
    reference: Outputs, current: Outputs, names: Iterable[str], seed: int, draws: int = DRAWS
) -> dict[str, dict[str, float]]:
    """Every estimator's ``value``, ``low`` and ``high``.

    The 95 % percentile bootstrap draws groups of both samples; all estimators see the same draws.
    It covers chance, not a broken assumption.
    """
    chosen = {name: plugins.load("harm", name).estimate for name in names}
    rng = np.random.default_rng(seed)
    first, second = resampler(reference.groups), resampler(current.groups)
    drawn: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(draws):
        pair = reference.take(first(rng)), current.take(second(rng))
        for name, estimate in chosen.items():
            drawn[name].append(estimate(*pair))
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = {}
    for name, estimate in chosen.items():
        low, high = np.quantile(drawn[name], tails) if draws else (np.nan, np.nan)
        value = float(estimate(reference, current))
        found[name] = {"value": value, "low": float(low), "high": float(high)}
    return found


def disagreement(found: Mapping[str, Mapping[str, float]]) -> float:
    """Largest less smallest estimate."""
    values = [f["value"] for f in found.values()]
    return max(values) - min(values) if values else 0.0


def record(days: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the estimators got wrong on days whose labels came, by name.

    Args:
        days: ``date``, ``estimates`` (name -> value or {"value": ...}), ``truth`` (accuracy on
            labels) and ``error`` (its standard error: part of every difference is the labels').

    Returns:
        ``days``, ``mean_error`` (signed), ``mean_absolute_error``, ``worst`` (signed) with
        ``worst_date``, and ``label_noise``: the mean standard error of the truths.
    """
    seen: dict[str, list[tuple[str, float, float]]] = {}
    for day in days:
        for name, value in day["estimates"].items():
            guess = value["value"] if isinstance(value, Mapping) else value
            row = (str(day["date"]), float(guess) - float(day["truth"]), float(day["error"]))
            seen.setdefault(name, []).append(row)
    return {name: _summary(rows) for name, rows in sorted(seen.items())}


def _summary(rows: list[tuple[str, float, float]]) -> dict[str, Any]:
    errors = np.array([r[1] for r in rows])
    worst = int(np.abs(errors).argmax())
    return {
        "days": len(rows),
        "mean_error": float(errors.mean()),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "worst": float(errors[worst]),
        "worst_date": rows[worst][0],
        "label_noise": float(np.mean([r[2] for r in rows])),
    }


def suspect(
    found: Mapping[str, Mapping[str, float]], accuracy: float, min_drop: float, drift: bool
) -> dict[str, Any]:
    """Whether the estimates call for labels; never a claim of harm.

    ``suspected``: at least half of the estimators put their whole interval below ``accuracy``
    (the reference's) less ``min_drop``. ``priority`` of a labelling request: high if so; medium
    if any of them does, if they disagree by more than ``min_drop``, or if images have drifted.
    """
    below = [name for name, f in found.items() if f["high"] < accuracy - min_drop]
    suspected = bool(found) and 2 * len(below) >= len(found)
    spread = disagreement(found)
    some = bool(below) or spread > min_drop or drift
    return {
        "status": "suspected" if suspected else "not suspected",
        "priority": "high" if suspected else "medium" if some else "low",
        "below": sorted(below),
        "disagreement": spread,
    }
