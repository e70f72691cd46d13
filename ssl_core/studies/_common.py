"""What a study returns, and the rule by which data agrees with a paper or does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..stages._bench_summary import half_width

Verdict = Literal["yes", "no", "undecided"]
SAID = {"yes": "agrees", "no": "does not agree", "undecided": "undecided"}
RULE = (
    "Each claim is put as a difference that is positive if the paper is right, one value per seed; "
    "seeds differ in initial weights, order and augmentation, and in the images or classes drawn "
    "where the design draws any. The data agrees if Student's 95 % interval of the mean lies above "
    "zero, does not agree if it lies below, and is undecided if it covers zero. Intervals are not "
    "corrected for the number of claims."
)


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what was found: a mean over seeds with its 95 % interval."""

    source: str  # arXiv id, or where else it is claimed
    text: str  # what is claimed
    set_: str
    measured: str  # what the number is
    value: float
    low: float
    high: float
    seeds: int
    verdict: Verdict

    def found(self) -> str:
        """What was measured."""
        value = f"{self.value:+.3g}"
        if np.isfinite(self.low):
            value += f" [{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.measured[0].upper()}{self.measured[1:]}: {value}, {self.seeds} seeds."

    def sentence(self) -> str:
        """All of it in plain words."""
        says = f"{self.text} ({self.source})."
        return f"{says} On {self.set_} our data {_verb(self.verdict)}. {self.found()}"


def _verb(verdict: Verdict) -> str:
    return "is undecided" if verdict == "undecided" else SAID[verdict]


@dataclass(frozen=True)
class Study:
    """One study's result.

    ``rows``: one line per training and what was measured on it, with a column ``seed``;
    ``pictures``: PNG by name; ``left_out``: what this data cannot answer, and failed trainings.
    """

    title: str
    question: str
    design: tuple[str, ...]
    rows: pd.DataFrame
    claims: list[Claim]
    pictures: dict[str, bytes]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # by heading
    left_out: tuple[str, ...] = ()


def judge(
    source: str, text: str, set_: str, measured: str, by_seed: Mapping[Any, float] | pd.Series
) -> Claim:
    """Decide by :data:`RULE`; ``by_seed`` holds one difference per seed, positive as claimed."""
    values = [float(v) for v in pd.Series(by_seed, dtype=float) if np.isfinite(v)]
    half = half_width(values)
    mean = float(np.mean(values)) if values else float("nan")
    low, high = (mean - half, mean + half) if half is not None else (float("nan"),) * 2
    verdict: Verdict = "yes" if low > 0 else "no" if high < 0 else "undecided"
    return Claim(source, text, set_, measured, mean, low, high, len(values), verdict)


def difference(rows: pd.DataFrame, measure: str, more: Any, less: Any) -> pd.Series:
    """Mean of ``measure`` by seed where ``more`` (a mask) holds, less that where ``less`` does."""
    first, second = (rows[mask].groupby("seed")[measure].mean() for mask in (more, less))
    found: pd.Series = (first - second).dropna()
    return found


def by_seed(rows: pd.DataFrame, work: Callable[[pd.DataFrame], float]) -> pd.Series:
    """``work`` on the rows of each seed."""
    return pd.Series({seed: work(part) for seed, part in rows.groupby("seed")}, dtype=float)


def fitted(x: Any, y: Any, degree: int = 1) -> float:
    """Leading coefficient of the polynomial that is fitted to y over x; NaN where it has no say."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    live = np.isfinite(x) & np.isfinite(y)
    if len(np.unique(x[live])) <= degree:
        return float("nan")
    return float(np.polyfit(x[live], y[live], degree)[0])


def split_failed(rows: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows of trainings that ended well, and a sentence about each of the others."""
    if "failed" not in rows:
        return rows.copy(), ()
    bad = rows["failed"].notna()
    told = [
        f"{', '.join(f'{k} {r[k]}' for k in keys)}: {r['failed']}"
        for r in rows[bad].to_dict("records")
    ]
    return rows[~bad].copy(), tuple(told)


def means(rows: pd.DataFrame, keys: list[str], measures: list[str]) -> pd.DataFrame:
    """Mean and half a 95 % interval over seeds as text, one line per combination of ``keys``."""
    lines = []
    for name, part in rows.groupby(keys, sort=False, dropna=False):
        line = dict(zip(keys, name if isinstance(name, tuple) else (name,), strict=True))
        for measure in measures:
            values = part[measure].dropna().tolist() if measure in part else []
            half = half_width(values)
            text = f"{np.mean(values):.3f}" if values else ""
            line[measure] = text + (f" ± {half:.3f}" if half is not None else "")
        lines.append(line)
    return pd.DataFrame(lines)
