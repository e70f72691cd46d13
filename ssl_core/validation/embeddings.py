"""Features: one finite row per image, of the right width, and not all alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..types import Array
from ._gx import CRITICAL, WARNING, Outcome, Rule, between, check, largest

SUITE = "embeddings"
LEAST_SPREAD = 1e-3  # root mean square distance to the mean, over that to zero
LEAST_RANK = 3.0  # fewer effective dimensions than this tell hardly anything apart
CONSTANT = 0.5  # share of dimensions that may hold one value
NORMS = 30.0  # times the median norm, or its inverse
CHUNK, SAMPLE = 4_096, 4_096

T = TypeVar("T", bound=np.generic)


def chunks(features: NDArray[T]) -> Iterator[NDArray[T]]:
    """Rows in blocks, so that what is derived from them stays small."""
    return (features[i : i + CHUNK] for i in range(0, len(features), CHUNK))


def rank(features: Array) -> float:
    """Effective rank of centred rows (N, D): exp of the entropy of their singular values.

    RankMe (arXiv 2210.02885) on at most ``SAMPLE`` evenly spaced rows; 0 where all are equal.
    """
    step = -(-len(features) // SAMPLE)
    rows = features[::step].astype(np.float64)
    size = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    if not size.sum():
        return 0.0
    p = size[size > 0] / size.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def by_row(features: Array, keys: Sequence[str]) -> pd.DataFrame:
    """One row per image: key, values that are not finite, norm, and a digest of the features.

    Copies of one content have equal features by right: only the first has a digest.
    """
    parts = list(chunks(features))
    bad = np.concatenate([(~np.isfinite(p)).sum(axis=1) for p in parts])
    size = np.concatenate([np.linalg.norm(p, axis=1) for p in parts])
    usual = float(np.median(size[np.isfinite(size)])) if np.isfinite(size).any() else 0.0
    digest = [hashlib.sha256(row.tobytes()).hexdigest() for row in features]
    again = pd.Series(keys, dtype="str").duplicated()
    return pd.DataFrame(
        {
            "key": pd.Series(keys, dtype="str"),
            "bad_values": bad,
            "size": np.nan_to_num(size / usual if usual else size, posinf=np.inf),
            "digest": pd.Series(digest, dtype="str").mask(again),
        }
    )


def moments(features: Array, sound: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Standard deviation of each dimension (D,), and root mean square length, of some rows.

    By blocks: the features may be a file larger than memory.
    """
    count = max(1, int(sound.sum()))

    def mean(of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        total = np.zeros(features.shape[1])
        for part, good in zip(chunks(features), chunks(sound), strict=True):
            total += of(part[good].astype(np.float64)).sum(axis=0)  # (B, D) -> (D,)
        return total / count

    centre, square = mean(lambda x: x), mean(np.square)
    return np.sqrt(mean(lambda x: np.square(x - centre))), float(np.sqrt(square.sum()))


def as_whole(features: Array, keys: Sequence[str], expected: Sequence[str]) -> pd.DataFrame:
    """One row about all features; ``expected`` are the keys there should be, in order."""
    checked = (np.isfinite(part).all(axis=1) for part in chunks(features))
    sound = np.concatenate([np.zeros(0, bool), *checked])  # (N,)
    about, length = moments(features, sound)
    at = np.flatnonzero(sound)
    sample = features[at[:: -(-len(at) // SAMPLE)]] if len(at) else np.zeros((1, 1), np.float32)
    aligned = len(features) == len(keys) == len(expected) and list(keys) == list(expected)
    return pd.DataFrame(
        {
            "aligned": [int(aligned)],
            "dimensions": [features.shape[1]],
            "spread": [float(np.sqrt(np.square(about).sum())) / (length or 1.0)],
            "constant": [float((about <= 1e-7 * (length or 1.0)).mean())],
            "rank": [rank(sample)],
        }
    )


def whole_rules(dimensions: int | None, rows: int) -> list[Rule]:
    """Rules for all features together; ``dimensions`` is what the encoder says of itself."""
    least = min(LEAST_RANK, rows / 4)  # of a handful of images nothing can be said
    width = [] if dimensions is None else [dimensions]
    return [
        largest("one row per image, in the order of the index", "aligned", 1, 1),
        *[largest(f"{d} dimensions, as the encoder has", "dimensions", d, d) for d in width],
        largest("features are not all alike", "spread", LEAST_SPREAD, None),
        largest(f"effective rank is at least {least:.3g}", "rank", least, None, WARNING),
        largest(
            f"at most {CONSTANT:.0%} of dimensions are constant",
            "constant",
            None,
            CONSTANT,
            WARNING,
        ),
    ]


def row_rules() -> list[Rule]:
    """Rules for single images."""
    low, high = 1 / NORMS, NORMS
    return [
        between("every value is finite", "bad_values", None, 0, CRITICAL),
        between(f"norms are within {NORMS:.0f} times the median", "size", low, high),
        Rule(
            "different images have different features",
            WARNING,
            "ExpectColumnValuesToBeUnique",
            {"column": "digest"},
        ),
    ]


def judge(
    features: Array, keys: Sequence[str], expected: Sequence[str], dimensions: int | None = None
) -> list[Outcome]:
    """Outcomes for features (N, D) of the images ``keys``, where there should be ``expected``."""
    whole = as_whole(features, keys, expected)
    found = check(SUITE, whole, whole_rules(dimensions, len(features)))
    if len(features) == len(keys):
        found += check(SUITE, by_row(features, keys), row_rules(), "key")
    return found
