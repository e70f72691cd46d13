"""Which images to label so that accuracy is known best: a stratified sample.

Strata are bands of the error probability that the reference's calibration gives each image;
Neyman's allocation (1934) takes most from where outcomes vary most. Every image keeps a known
chance, so the estimate is unbiased whatever the guesses were worth; they only decide how narrow
its interval is. The aim is that of active testing (arXiv 2103.05331); a stratified sample needs
one round of labels instead of one per image, and has a plain variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import HeadwaterError
from ._common import Vector

PER_STRATUM = 12  # labels that a stratum should get, on average
MOST = 8  # strata
LEAST = 2  # labels of a stratum: one has no variance
EVEN = 0.25  # share of the labels spread in proportion to size: the guesses may be wrong
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Which of N images to label: ``chosen`` (n,) rows in order, ``stratum`` (N,) of each image,
    ``inclusion`` (N,) its chance. ``width`` is the 95 % interval to expect if the guessed error
    probabilities hold, ``uniform_width`` that of as many images drawn alike.
    """

    chosen: Index
    stratum: Index
    inclusion: Vector
    width: float
    uniform_width: float


def bands(error: Vector, count: int) -> Index:
    """Stratum (N,) of each image, 0 the surest: bands of equal total standard deviation."""
    order = np.argsort(error, kind="stable")
    spread = np.sqrt(np.clip(error * (1 - error), 1e-4, None))[order]
    reached = (np.cumsum(spread) - spread / 2) / spread.sum()
    wanted = int(np.clip(count // PER_STRATUM, 1, min(MOST, len(error) // LEAST or 1)))
    stratum = np.empty(len(error), np.int64)
    stratum[order] = np.unique((reached * wanted).astype(np.int64), return_inverse=True)[1]
    return stratum


def allocate(size: Index, deviation: Vector, count: int) -> Index:
    """Labels per stratum (H,): Neyman's, in part proportional; at least 2, at most all."""
    neyman, even = size * deviation / (size * deviation).sum(), size / size.sum()
    wish = ((1 - EVEN) * neyman + EVEN * even) * count
    given = np.minimum(LEAST, size)
    while given.sum() < count:  # one by one, to where most is missing
        short = np.where(given < size, (wish - given) / np.maximum(given, 1), -np.inf)
        given[int(np.argmax(short))] += 1
    return given


def plan(error: Vector, count: int, rng: np.random.Generator) -> Plan:
    """Choose ``count`` of N images by their guessed error probability (N,).

    Raises:
        HeadwaterError: fewer images than that, or too few labels for a stratum.
    """
    if count < LEAST:
        rule = f"is below {LEAST}: one label has no variance"
        raise HeadwaterError(f"--count {count}", rule, "ask for 50 to 200")
    if len(error) <= count:
        rule = f"are no more than the {count} to label"
        raise HeadwaterError(f"{len(error)} images", rule, "label all of them, or ask for fewer")
    stratum = bands(error, count)
    size = np.bincount(stratum)
    mean = np.bincount(stratum, error) / size
    given = allocate(size, np.sqrt(np.clip(mean * (1 - mean), 1e-4, None)), count)
    chosen = [
        rng.choice(np.flatnonzero(stratum == h), n, replace=False) for h, n in enumerate(given)
    ]
    share, whole = size / size.sum(), float(error.mean())
    within = (share**2 * mean * (1 - mean) / given).sum()
    between = (share * (mean - whole) ** 2).sum() / len(error)
    return Plan(
        np.sort(np.concatenate(chosen)),
        stratum,
        (given / size)[stratum],
        float(2 * 1.96 * (within + between) ** 0.5),
        float(2 * 1.96 * (whole * (1 - whole) / count) ** 0.5),
    )
