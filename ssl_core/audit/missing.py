"""Metadata that is missing, guessed from the nearest images where that is proven to be right.

A guess is the vote of the nearest neighbours whose value is known. How sure a vote has to be is
learned on images whose value is known too, from neighbours of other groups only; where no bar makes
the guesses right often enough, the value stays unknown. Nothing that was given is written over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..evaluate._common import unit
from ..types import Array

NEIGHBOURS = 10
BARS = np.arange(0.4, 1.0, 0.1)  # shares of the vote that are tried
CONFIDENCE = 0.95  # of the bound on how often guesses are right, over all bars together
LEAST = 30  # images with a known value below which nothing is guessed
UNKNOWN = "unknown"
COLUMNS = ("sha256", "path", "column", "value", "vote", "confidence")
Names = NDArray[np.str_]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Bar:
    """Votes of at least ``vote`` are right with ``precision`` or more; None: no vote is."""

    vote: float | None
    precision: float
    share: float  # of the known images that a vote this sure would speak for


def neighbours(known: Array, asked: Array, count: int) -> NDArray[np.int64]:
    """Rows of ``known`` (N, D) nearest to each of ``asked`` (M, D) by cosine: (M, count)."""
    import faiss

    rows = [unit(np.ascontiguousarray(x, np.float32)) for x in (known, asked)]
    index = faiss.IndexFlatIP(rows[0].shape[1])
    index.add(rows[0])
    found: NDArray[np.int64] = index.search(rows[1], min(count, len(rows[0])))[1]
    return found


def vote(values: Names, near: NDArray[np.int64], usable: NDArray[np.bool_]) -> tuple[Names, Vector]:
    """The commonest value among usable neighbours (M, K), the nearer first where there is a tie,
    and its share of ``NEIGHBOURS`` votes.
    """
    names, code = np.unique(values, return_inverse=True)
    turn = np.cumsum(usable, axis=1)
    taken = usable & (turn <= NEIGHBOURS)
    weight = taken * (1 + 1e-6 * np.arange(near.shape[1], 0, -1) / near.shape[1])
    tally = np.zeros((len(near), len(names)))
    np.add.at(tally, (np.arange(len(near))[:, None], code[near]), weight)
    best = tally.argmax(axis=1)
    share = np.round(tally[np.arange(len(near)), best]) / NEIGHBOURS
    return names[best], share


def lower(right: int, count: int, level: float) -> float:
    """Clopper and Pearson's lower bound of a share."""
    from scipy.stats import beta

    return float(beta.ppf(1 - level, right, count - right + 1)) if right else 0.0


def bar(share: Vector, right: NDArray[np.bool_], precision: float) -> Bar:
    """The lowest bar above which guesses are proven right often enough."""
    level = 1 - (1 - CONFIDENCE) / len(BARS)
    for value in BARS:
        over = share >= value - 1e-9
        bound = lower(int(right[over].sum()), int(over.sum()), level) if over.any() else 0.0
        if bound >= precision:
            return Bar(float(value), bound, float(over.mean()))
    return Bar(None, 0.0, 0.0)


def infer(
    features: Array, groups: Names, values: pd.Series, precision: float
) -> tuple[pd.DataFrame, Bar]:
    """Guesses for the rows without a value: ``row``, ``value``, ``vote``, ``confidence``.

    ``value`` is "unknown" where the vote does not reach the bar.
    """
    text = values.astype("str")
    known, gap = np.flatnonzero(text.notna()), np.flatnonzero(text.isna())
    empty = pd.DataFrame({"row": gap, "value": UNKNOWN, "vote": 0.0, "confidence": 0.0})
    if not len(gap) or len(known) < LEAST or text.nunique() < 2:
        return empty, Bar(None, 0.0, 0.0)
    given = text.iloc[known].to_numpy(str)
    own = groups[known]
    near = neighbours(features[known], features[known], 3 * NEIGHBOURS)
    guess, share = vote(given, near, own[near] != own[:, None])
    found = bar(share, guess == given, precision)
    near = neighbours(features[known], features[gap], NEIGHBOURS)
    guess, share = vote(given, near, np.ones_like(near, np.bool_))
    sure = np.zeros(len(gap), np.bool_) if found.vote is None else share >= found.vote - 1e-9
    value = np.where(sure, guess, UNKNOWN)
    table = empty.assign(value=value, vote=share, confidence=np.where(sure, found.precision, 0.0))
    return table, found
