"""Few labels: what a handful of images per class is enough for, over many choices of them.

Two ways to learn from them. The main number is the nearest class mean after centring and scaling
to length one (SimpleShot, arXiv 1911.04623): it has nothing to tune, which a handful of images
could not tune anyway, and with one image it is the nearest neighbour. ``logistic_accuracy`` is
logistic regression on the same features with the penalty fixed at scikit-learn's default, as in
arXiv 2003.11539: it gains on the mean as images are added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Array, Embeddings, Labels
from . import _common, linear

STRENGTH = 1.0  # scikit-learn's C
Rows = NDArray[np.int64]


def _first(codes: Rows, order: Rows) -> Rows:
    """Of each code, the row that comes first in ``order``."""
    _, at = np.unique(codes[order], return_index=True)
    found: Rows = order[at]
    return found


def choose(train: Embeddings, shots: int, rng: np.random.Generator) -> Rows:
    """Rows of ``shots`` images of each class, each of another group; all groups if there are fewer.

    Every group of a class is equally likely, however many images it has.
    """
    _, group = np.unique(train.groups, return_inverse=True)
    pair = train.labels * (int(group.max()) + 1) + group
    rows = _first(pair, rng.permutation(len(train)))  # one of each class and group
    rows = rng.permutation(rows)
    rows = rows[np.argsort(train.labels[rows], kind="stable")]
    _, start, count = np.unique(train.labels[rows], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(start, count)
    return rows[rank < shots]


def nearest_mean(x: Array, labels: Labels, test: Array) -> Labels:
    """Classes (M,) of unit rows ``test`` (M, D) by cosine to the class means of ``x`` (N, D)."""
    present, own = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(present), x.shape[1]), np.float32)
    np.add.at(sums, own, x)
    best: Labels = present[(test @ _common.unit(sums).T).argmax(axis=1)]
    return best


def logistic(x: Array, labels: Labels, test: Array) -> Labels:
    """Classes (M,) by multinomial logistic regression with a fixed penalty."""
    present, own = np.unique(labels, return_inverse=True)
    # The minimum lies in the span of the rows: few rows, few directions.
    turn = np.linalg.qr(x.T)[0] if len(x) < x.shape[1] else np.eye(x.shape[1], dtype=np.float32)
    few, many = (_with_one(side @ turn) for side in (x, test))
    energy = (few[:, :-1] ** 2).mean(axis=0)
    start = np.zeros((len(present), few.shape[1]), np.float32)
    weight = linear.solve(few, own, energy, STRENGTH, start)
    best: Labels = present[(many @ weight.T).argmax(axis=1)]
    return best


def _with_one(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1).astype(np.float32)


def interval(right: NDArray[np.bool_], groups: NDArray[np.str_], draws: int) -> _common.Interval:
    """Mean of ``right`` (R, N), R choices of shots; both they and test groups are resampled.

    Two-way bootstrap (Owen 2007), a little wide by construction.
    """
    _, code = np.unique(groups, return_inverse=True)
    totals = np.zeros((int(code.max()) + 1, len(right) + 1))  # (G, R + 1)
    np.add.at(totals, code, np.concatenate([right, np.ones((1, len(code)))]).T)
    if len(totals) < 2 or len(right) < 2:
        return float(right.mean()), *_common.NONE
    drawn = _common.resample(totals, draws, _common.SEED)
    chosen = np.random.default_rng(_common.SEED + 1).integers(0, len(right), (draws, len(right)))
    hits = np.take_along_axis(drawn[:, :-1], chosen, axis=1).mean(axis=1)
    return float(right.mean()), *_common.spread(hits / drawn[:, -1])


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """Accuracy by number of images per class, mean over ``cfg.draws`` choices.

    Features are centred by all training images: that needs no label.

    Raises:
        HeadwaterError: training labels of fewer than two classes.
    """
    mean = train.features.mean(axis=0)
    train, test = _common.require_labels(train), _common.labelled(test)
    x, target = (_common.unit(e.features - mean).astype(np.float32) for e in (train, test))
    found = []
    with _common.threads(target.size * len(train.classes)):
        for shots in cfg.shots:
            found += _at(shots, x, train, target, test, cfg)
    return [found[0] | {"slice": "all"}, *found]


def _at(
    shots: int, x: Array, train: Embeddings, target: Array, test: Embeddings, cfg: Evaluate
) -> list[_common.Row]:
    """Both learners' rows, on the same choices."""
    rng, found = np.random.default_rng(_common.SEED), []
    choices = [choose(train, shots, rng) for _ in range(cfg.draws)]
    for metric, learn in (("accuracy", nearest_mean), ("logistic_accuracy", logistic)):
        value: _common.Interval = (_common.NAN, *_common.NONE)
        if len(test):
            right = [learn(x[c], train.labels[c], target) == test.labels for c in choices]
            value = interval(np.array(right), test.groups, cfg.bootstrap)
        found.append(_common.row(metric, value[0], len(test), f"shots:{shots}", value[1:]))
    return found
