"""What a day is compared with: rows drawn from everything that its model saw before.

Rows are drawn by whole units (images, groups of images, or days) and by numbers of units alone,
never by what they show: the tests' p-values rest on it (``ssl_core/alarm.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..drift._common import TooFew
from ..drift.quality import COLUMNS
from ._days import Day, count_rejects, features

POOL = 2000  # rows of the past that one look compares with
MOST = 2000  # rows of the day
LEAST_OF_DAY = 2  # rows of each day where days are the units
Values = NDArray[Any]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The reference or one day, as one kind of detector sees it.

    ``units`` (N,) are unique names of what is exchangeable; ``load(rows)`` reads these rows.
    """

    units: NDArray[np.str_]
    load: Callable[[Rows], Values]


def of_reference(frame: pd.DataFrame, sees: str) -> Batch | None:
    """The registry's reference; None if it does not have what is to be seen."""
    names = frame["group"].astype(str) if "group" in frame else pd.Series(np.arange(len(frame)))
    units = "reference/" + names.astype(str)
    if sees == "quality" and not set(COLUMNS) <= set(frame.columns):
        return None
    return Batch(units.to_numpy(str), lambda rows: values(frame.iloc[rows], sees))


@lru_cache(maxsize=1024)  # a watch over a year asks for each day again and again
def of_day(day: Day, sees: str, unit: str) -> Batch | None:
    """One day, each image once; None if its log lacks what is to be seen (it is older)."""
    about = day.read(("sha256", "group"))
    about = about.drop_duplicates("sha256")
    place = about.index.to_numpy()  # row in the log
    inside = about["group"] if "group" in about else pd.Series("", about.index)
    inside = inside.fillna("").where(lambda g: g != "", about["sha256"])
    units = (f"{day.date}/" + inside.astype(str)).to_numpy(str)
    if sees == "quality":
        found = _quality(day, place)
        if found is None:
            return None
        bad = np.array([f"{day.date}/rejected/{i}" for i in range(len(found) - len(units))], str)
        units = np.concatenate([units, bad])
        batch = Batch(units, lambda rows: found[rows])
    else:
        columns = {"features": ("embedding",), "classes": ("prediction",)}[sees]
        batch = Batch(units, lambda rows: values(day.read(columns).iloc[place[rows]], sees))
    return Batch(np.full(len(units), day.date), batch.load) if unit == "day" else batch


def values(frame: pd.DataFrame, sees: str) -> Values:
    """The rows of ``frame`` as a detector takes them. Labels of later days are not looked at."""
    if sees == "features":
        return features(frame)
    if sees == "quality":
        return frame[list(COLUMNS)].to_numpy(float)
    truth = frame["label"].fillna("") if "label" in frame else pd.Series("", frame.index)
    return np.stack([frame["prediction"].to_numpy(str), truth.to_numpy(str)], axis=1)


def _quality(day: Day, place: Rows) -> Values | None:
    """(N, 6): the readable images, then what was rejected."""
    frame = day.read(COLUMNS[1:])
    if len(frame.columns) < len(COLUMNS) - 1:
        return None
    good = frame.iloc[place].assign(**{COLUMNS[0]: 0.0})[list(COLUMNS)].to_numpy(float)
    bad = np.full((count_rejects(day.folder), len(COLUMNS)), np.nan)
    bad[:, 0] = 1
    return np.concatenate([good, bad])


# ---- drawing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """What a detector is asked about: values and units of the past and of the day."""

    past: Values
    past_units: NDArray[np.str_]
    now: Values
    now_units: NDArray[np.str_]


def draw(past: list[Batch], now: Batch, unit: str, rng: np.random.Generator) -> Pair:
    """At most about ``POOL`` rows of the past and ``MOST`` of the day.

    Raises:
        TooFew: there is no past yet.
    """
    if not past or not sum(len(b.units) for b in past):
        raise TooFew("the past", "holds nothing to compare with yet", "wait for another day")
    if unit == "day":
        # Few rows of many days: p is at least one in so many days, whatever the rows.
        share = max(LEAST_OF_DAY, POOL // 2 // (len(past) + 1))
        rows = [np.sort(rng.permutation(len(b.units))[:share]) for b in (*past, now)]
        taken = [b.load(r) for b, r in zip((*past, now), rows, strict=True)]
        units = [b.units[r] for b, r in zip((*past, now), rows, strict=True)]
        return Pair(np.concatenate(taken[:-1]), np.concatenate(units[:-1]), taken[-1], units[-1])
    names = np.concatenate([b.units for b in past])
    size = _mean_size(names, now.units)
    chosen = thin(names, int(POOL / size), rng)
    ends = np.cumsum([len(b.units) for b in past])
    parts = np.split(chosen, np.searchsorted(chosen, ends)[:-1])
    starts = ends - [len(b.units) for b in past]
    taken = [b.load(r - s) for b, r, s in zip(past, parts, starts, strict=True) if len(r)]
    own = thin(now.units, int(MOST / size), rng)
    return Pair(np.concatenate(taken), names[chosen], now.load(own), now.units[own])


def _mean_size(names: NDArray[np.str_], others: NDArray[np.str_]) -> float:
    units = len(np.unique(names)) + len(np.unique(others))
    return (len(names) + len(others)) / max(1, units)


def thin(names: NDArray[np.str_], most: int, rng: np.random.Generator) -> Rows:
    """The rows (K,), in order, of at most ``most`` random units out of ``names`` (N,)."""
    _, code = np.unique(names, return_inverse=True)
    count = int(code.max(initial=-1)) + 1
    kept = np.zeros(count, np.bool_)
    kept[rng.permutation(count)[: max(1, most)]] = True
    return np.flatnonzero(kept[code])
