"""What the measures share: labelled rows, slices of the test split, intervals over groups."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import Evaluate
from ..errors import HeadwaterError
from ..types import Array, Embeddings, Labels

Real = TypeVar("Real", bound=np.floating)
Row = dict[str, Any]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]
Interval = tuple[float, float, float]  # value, low, high
Predict = Callable[[Embeddings, Array], Labels]  # fit on the first, name rows of the second

LEVEL = 0.95
SEED = 0
SOURCES = 8  # sources left out in turn at most: each costs a fit
ENOUGH = 20  # labelled test images from which a source may be the worst one
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
LARGE = 2**31  # multiplications per product from which threads pay
CELLS = 2**22  # bootstrap weights held at once
NAN = float("nan")
NONE = (NAN, NAN)  # no interval


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


def unit(x: NDArray[Real]) -> NDArray[Real]:
    """Rows (N, D) scaled to length one; zero rows stay zero."""
    result: NDArray[Real] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return result


def noise(shape: tuple[int, int]) -> Matrix:
    """Standard normal features (N, D): what a measure says of an encoder that says nothing."""
    return np.random.default_rng(SEED).normal(size=shape)


def row(
    metric: str, value: float, n: int, slice_: str = "all", interval: tuple[float, float] = NONE
) -> Row:
    """One row of a measure."""
    low, high = interval
    return {
        "slice": slice_,
        "metric": metric,
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "n": int(n),
    }


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
    """One thread for small problems; ``multiplications`` in one matrix product.

    NumPy, SciPy and faiss each bring a pool, and idle threads spin: between small products they
    cost more than they give (on a busy 2-core machine 100 times a whole fit).
    """
    import faiss  # noqa: F401  # pools that are loaded later are not limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1 if multiplications < LARGE else None)
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
        with threads(count * groups * totals.shape[1]):
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


def _means(right: Matrix, count: Matrix, named: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """``METRICS`` (B,) from (B, C): right, true and named images by class.

    Classes without images are left out of both means.
    """
    present = count > 0

    def over_classes(part: Matrix, whole: Matrix) -> Matrix:
        share = np.divide(part, whole, out=np.zeros_like(part), where=present)
        mean: Matrix = share.sum(1) / present.sum(1)
        return mean

    accuracy = right.sum(1) / count.sum(1)
    return accuracy, over_classes(right, count), over_classes(2 * right, count + named)


def shares(
    predicted: Labels,
    labels: Labels,
    groups: NDArray[np.str_],
    draws: int,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Accuracy, balanced accuracy and macro-F1, with intervals.

    The last two are means of recall and F1 over the classes that ``labels`` hold.
    """
    from scipy.sparse import csr_matrix, hstack

    if not len(labels):
        return dict.fromkeys(METRICS, (NAN, NAN, NAN))
    _, row = np.unique(groups, return_inverse=True)
    names, codes = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    true, named = np.split(codes, 2)
    shape, ones = (int(row.max()) + 1, len(names)), np.ones(len(row))
    hit = (true == named).astype(np.float64)
    parts = ((hit, true), (ones, true), (ones, named))  # equal places are summed: (G, C) each
    totals = hstack([csr_matrix((v, (row, c)), shape) for v, c in parts]).tocsr()
    whole = np.asarray(totals.sum(axis=0), np.float64).reshape(1, -1)
    values = _means(*np.split(whole, 3, axis=1))
    if shape[0] < 2:
        return {m: (float(v[0]), NAN, NAN) for m, v in zip(METRICS, values, strict=True)}
    samples = _means(*np.split(resample(totals, draws, SEED), 3, axis=1))
    both = zip(METRICS, values, samples, strict=True)
    return {m: (float(v[0]), *spread(s, level)) for m, v, s in both}


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
    return [row(m, v, len(test), name, (low, high)) for m, (v, low, high) in found.items()]


def worst(test: Embeddings, predicted: Labels, draws: int) -> list[Row]:
    """The smallest values over sources of at least ``ENOUGH`` images, if there are two such.

    The minimum of noisy values is too small on average. So its interval is that of the smallest
    true value: the sources' own intervals hold together (Bonferroni), and their smallest bounds
    enclose it.
    """
    names, count = np.unique(test.sources, return_counts=True)
    names = names[count >= ENOUGH]
    if len(names) < 2:
        return []
    level, found = 1 - (1 - LEVEL) / len(names), []
    for name in names:
        mine = test.sources == name
        own = shares(predicted[mine], test.labels[mine], test.groups[mine], draws, level)
        found.append((own, int(mine.sum())))
    rows = []
    for metric in METRICS:
        value, n = min((own[metric][0], n) for own, n in found)
        low, high = (float(np.min([own[metric][i] for own, _ in found])) for i in (1, 2))
        rows.append(row(metric, value, n, "worst:source", (low, high)))
    return rows


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
    return found + worst(test, predicted, cfg.bootstrap)


def table(train: Embeddings, test: Embeddings, cfg: Evaluate, predict: Predict) -> list[Row]:
    """All rows of a measure that names images. Rows without a label take no part."""
    train, test = require_labels(train), labelled(test)
    found = by_slice(train, test, cfg, predict(train, test.features))
    return found + unseen(train, test, cfg, predict)
