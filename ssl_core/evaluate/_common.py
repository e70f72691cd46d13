"""What the measures share: labelled rows, slices of the test split, intervals over groups."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import Evaluate
from ..errors import HeadwaterError
from ..types import Array, Embeddings, Labels

Row = dict[str, Any]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]
Interval = tuple[float, float, float]  # value, low, high
Predict = Callable[[Embeddings, Array], Labels]  # fit on the first, name rows of the second

LEVEL = 0.95
SEED = 0
SOURCES = 8  # sources left out in turn at most: each costs a fit
LARGE = 2**31  # multiplications per product from which threads pay
CELLS = 2**22  # bootstrap weights held at once
NAN = float("nan")


def take(e: Embeddings, mask: Mask) -> Embeddings:
    """The rows where ``mask`` (N,) is true."""
    return replace(
        e,
        features=e.features[mask],
        labels=e.labels[mask],
        sha256=e.sha256[mask],
        groups=e.groups[mask],
        sources=e.sources[mask],
    )


def labelled(e: Embeddings) -> Embeddings:
    """The rows that carry a label."""
    return take(e, e.labels >= 0)


def require_labels(train: Embeddings) -> Embeddings:
    """The labelled rows to fit on.

    Raises:
        HeadwaterError: there are none, or all are of one class.
    """
    known = labelled(train)
    if len(np.unique(known.labels)) < 2:
        rule = "hold labels of fewer than two classes: nothing can be told apart"
        fix = "label some images, or set evaluate.measures to [rankme]"
        raise HeadwaterError("training images", rule, fix)
    return known


def threads(multiplications: int) -> AbstractContextManager[Any]:
    """One BLAS thread for small problems; ``multiplications`` in one matrix product.

    NumPy and SciPy each bring a pool, and idle threads spin: between small products they cost
    more than they give (on a busy 2-core machine 100 times a whole fit).
    """
    from threadpoolctl import threadpool_limits

    limit = 1 if multiplications < LARGE else None
    limits: AbstractContextManager[Any] = threadpool_limits(limit, user_api="blas")
    return limits


# ---- intervals ---------------------------------------------------------------------------------


def resample(totals: Any, draws: int, seed: int) -> Matrix:
    """Sums over groups drawn with replacement: ``totals`` (G, K), dense or sparse -> (draws, K).

    Groups are the unit: images of one group are not independent evidence.
    """
    rng, groups = np.random.default_rng(seed), totals.shape[0]
    step = max(1, CELLS // groups)
    parts = []
    for first in range(0, draws, step):
        count = min(step, draws - first)
        drawn = rng.integers(0, groups, (count, groups)) + groups * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups)
        parts.append(np.asarray((totals.T @ weights.T).T, np.float64))
    return np.concatenate(parts)


def spread(samples: Matrix, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval (Efron 1981) of bootstrap values (B,); NaN draws are left out."""
    live = samples[np.isfinite(samples)]
    if not len(live):
        return NAN, NAN
    low, high = np.quantile(live, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(
    gain: ArrayLike, groups: NDArray[np.str_], draws: int, level: float = LEVEL, seed: int = SEED
) -> Interval:
    """Mean of paired differences ``gain`` (N,) with its interval over groups.

    The interval is NaN with fewer than two groups, the mean with none.
    """
    values = np.asarray(gain, np.float64)
    if not len(values):
        return NAN, NAN, NAN
    _, code = np.unique(groups, return_inverse=True)
    totals = np.stack([np.bincount(code, values), np.bincount(code)], axis=1)  # (G, 2)
    if len(totals) < 2:
        return float(values.mean()), NAN, NAN
    drawn = resample(totals, draws, seed)
    return float(values.mean()), *spread(drawn[:, 0] / drawn[:, 1], level)


def _means(right: Matrix, count: Matrix) -> tuple[Matrix, Matrix]:
    """Accuracy and mean recall (B,) from per-class counts (B, C); absent classes are left out."""
    present = count > 0
    recall = np.divide(right, count, out=np.zeros_like(right), where=present)
    return right.sum(1) / count.sum(1), recall.sum(1) / present.sum(1)


def shares(
    predicted: Labels, labels: Labels, groups: NDArray[np.str_], draws: int
) -> dict[str, Interval]:
    """Accuracy and balanced accuracy (mean recall of the classes present), with intervals."""
    from scipy.sparse import csr_matrix, hstack

    metrics = ("accuracy", "balanced_accuracy")
    if not len(labels):
        return dict.fromkeys(metrics, (NAN, NAN, NAN))
    (_, row), (_, column) = (np.unique(x, return_inverse=True) for x in (groups, labels))
    count = csr_matrix((np.ones(len(row)), (row, column)))  # equal places are summed: (G, C)
    right = csr_matrix(((predicted == labels).astype(np.float64), (row, column)), count.shape)
    classes = count.shape[1]
    whole = np.asarray(hstack([right, count]).sum(axis=0), np.float64).reshape(1, -1)
    values = _means(whole[:, :classes], whole[:, classes:])
    if count.shape[0] < 2:
        return {m: (float(v[0]), NAN, NAN) for m, v in zip(metrics, values, strict=True)}
    drawn = resample(hstack([right, count]).tocsr(), draws, SEED)
    samples = _means(drawn[:, :classes], drawn[:, classes:])
    both = zip(metrics, values, samples, strict=True)
    return {m: (float(v[0]), *spread(s)) for m, v, s in both}


# ---- slices ------------------------------------------------------------------------------------


def tail(train: Embeddings, test: Embeddings, cfg: Evaluate) -> dict[str, Mask]:
    """Test rows by how many labelled training images their class has (arXiv 1904.05160)."""
    known = train.labels[train.labels >= 0]
    count = np.bincount(known, minlength=len(test.classes))[test.labels]
    return {
        "tail:many": count > cfg.many,
        "tail:medium": (count >= cfg.few) & (count <= cfg.many),
        "tail:few": count < cfg.few,
    }


def slices(train: Embeddings, test: Embeddings, cfg: Evaluate) -> dict[str, Mask]:
    """Masks (N,) over the labelled test rows."""
    own = {f"source:{s}": test.sources == s for s in np.unique(test.sources)}
    return {"all": np.ones(len(test), np.bool_), **own, **tail(train, test, cfg)}


def _rows(name: str, predicted: Labels, test: Embeddings, draws: int) -> list[Row]:
    found = shares(predicted, test.labels, test.groups, draws)
    return [
        {"slice": name, "metric": metric, "value": v, "low": low, "high": high, "n": len(test)}
        for metric, (v, low, high) in found.items()
    ]


def unseen(train: Embeddings, test: Embeddings, cfg: Evaluate, predict: Predict) -> list[Row]:
    """Leave one source out: fit on the other sources, test on the one left out."""
    names, count = np.unique(test.sources, return_counts=True)
    found = []
    for name in sorted(names[np.argsort(-count, kind="stable")][:SOURCES]):
        others = take(train, train.sources != name)
        if len(np.unique(others.labels)) < 2:
            continue
        mine = take(test, test.sources == name)
        found += _rows(f"unseen:{name}", predict(others, mine.features), mine, cfg.bootstrap)
    return found


def by_slice(train: Embeddings, test: Embeddings, cfg: Evaluate, predicted: Labels) -> list[Row]:
    """Rows of every slice for predictions (N,) of the labelled test rows."""
    found = []
    for name, mask in slices(train, test, cfg).items():
        found += _rows(name, predicted[mask], take(test, mask), cfg.bootstrap)
    return found


def table(train: Embeddings, test: Embeddings, cfg: Evaluate, predict: Predict) -> list[Row]:
    """All rows of a measure that names images. Rows without a label take no part."""
    train, test = require_labels(train), labelled(test)
    found = by_slice(train, test, cfg, predict(train, test.features))
    return found + unseen(train, test, cfg, predict)
