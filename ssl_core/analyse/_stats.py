"""Shares with intervals, and probes of images that an analysis drew itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evaluate import _common, linear
from ..types import Array, Embeddings, Labels
from ._subject import DRAWS, Row, row


def ratio(top: ArrayLike, bottom: ArrayLike, groups: NDArray[np.str_]) -> _common.Interval:
    """Sum over sum of values (N,), with its interval over groups; NaN where there is nothing."""
    over, under = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    if not under.sum():
        return _common.NAN, _common.NAN, _common.NAN
    _, code = np.unique(groups, return_inverse=True)
    totals = np.stack([np.bincount(code, over), np.bincount(code, under)], axis=1)  # (G, 2)
    drawn = _common.resample(totals, DRAWS, _common.SEED)
    live = drawn[drawn[:, 1] != 0]
    return float(over.sum() / under.sum()), *_common.spread(live[:, 0] / live[:, 1])


def share(metric: str, right: ArrayLike, slice_: str, among: ArrayLike | None = None) -> Row:
    """Share of ``right`` (N,) among all, or ``among`` (N,), of independent images."""
    values = np.asarray(right, np.float64)
    under = np.ones(len(values)) if among is None else np.asarray(among, np.float64)
    each = np.arange(len(values)).astype(str)
    value, low, high = ratio(values * under, under, each)
    return row(metric, value, int(under.sum()), slice_, (low, high))


def embeddings(features: Array, labels: Labels, classes: int) -> Embeddings:
    """Drawn images, each of a group of its own."""
    each = np.arange(len(labels)).astype(str)
    names = tuple(f"{i:03d}" for i in range(classes))
    return Embeddings(features, labels, names, each, each, np.full(len(labels), "drawn"))


def probed(features: Array, labels: Labels, asked: Array) -> Labels:
    """Fit a linear probe on drawn images and name others, (M,)."""
    known = embeddings(features, labels, int(labels.max()) + 1)
    return linear.named(linear.fit(known), known, asked)
