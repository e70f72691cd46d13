"""Which candidates are worth training on: of their class, agreed upon, and nobody's copy.

All is measured in the seed encoder's features, the same for every generator:

- ``copy``: nearly a real image, of the test split too. By the two witnesses of deduplication
  (``curation/near.py``), or by features alone when they are almost equal: a model that repeats what
  it learned adds nothing, and an image of the test split must not come back into training.
- ``far``: less like the nearest real image of its class than all but a few real images are.
- ``other-class``: the probe of the real training images, with equal priors (arXiv 2007.07314, or it
  would never name a rare class), has its label not among its first guesses.
- ``repeat``: nearly a candidate that was accepted before. ``enough``: accepted, but not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Curate, Synthesise
from ..curation._vectors import normalise
from ..evaluate import linear
from ..types import Array, Embeddings, Labels

ACCEPTED, COPY, FAR, OTHER = "", "copy", "far", "other-class"
REPEAT, ENOUGH = "repeat", "enough"
BLOCK = 256
Bits = NDArray[np.uint64]


@dataclass(frozen=True)
class Real:
    """All real images: ``features`` (N, D), ``bits`` (N,) of the pHash, and which may be learned.

    ``train`` holds the kept training rows with their labels.
    """

    features: Array
    bits: Bits
    train: Embeddings


@dataclass(frozen=True)
class Candidates:
    """``features`` (M, D), ``bits`` (M,), ``labels`` (M,) as in ``Real.train.classes``."""

    features: Array
    bits: Bits
    labels: Labels


def nearest(unit: Array, gallery: Array) -> tuple[Array, Labels]:
    """Largest cosine to the rows of ``gallery``, and whose it is: (M, D), (N, D) -> (M,), (M,)."""
    best, where = [], []
    for first in range(0, len(unit), BLOCK):
        cosine = unit[first : first + BLOCK] @ gallery.T  # (B, D) @ (D, N) -> (B, N)
        where.append(cosine.argmax(1))
        best.append(cosine.max(1))
    if not best:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    return np.concatenate(best), np.concatenate(where).astype(np.int64)


def copies(found: Candidates, real: Real, curate: Curate, limit: float) -> NDArray[np.bool_]:
    """Candidates that are nearly some real image: (M,)."""
    unit, gallery = normalise(found.features), normalise(real.features)
    out = np.zeros(len(unit), np.bool_)
    for first in range(0, len(unit), BLOCK):
        part = slice(first, first + BLOCK)
        cosine = unit[part] @ gallery.T  # (B, D) @ (D, N) -> (B, N)
        distance = np.bitwise_count(found.bits[part, None] ^ real.bits[None])  # (B, N)
        both = (cosine >= curate.near_cosine) & (distance <= curate.near_hamming)
        out[part] = (both | (cosine >= limit)).any(1)
    return out


def likeness(unit: Array, labels: Labels, train: Embeddings, own: bool) -> Array:
    """Cosine to the nearest real training image of the same class: (M,).

    ``own``: the rows are those of ``train``, and no image is its own neighbour. Where there is no
    other, NaN.
    """
    gallery, out = normalise(train.features), np.full(len(unit), np.nan, np.float32)
    for label in np.unique(labels):
        mine, there = np.flatnonzero(labels == label), np.flatnonzero(train.labels == label)
        if len(there) <= own:
            continue
        cosine = unit[mine] @ gallery[there].T  # (m, D) @ (D, n) -> (m, n)
        if own:
            np.fill_diagonal(cosine, -np.inf)
        out[mine] = cosine.max(1)
    return out


def ranks(found: Candidates, train: Embeddings) -> Labels:
    """Place of each candidate's label among the probe's guesses, 0 the first: (M,)."""
    head = linear.fit(train)
    count = np.bincount(train.labels, minlength=len(train.classes))
    place = {name: i for i, name in enumerate(train.classes)}
    rows = np.array([place[name] for name in head.classes])
    logits = head.logits(found.features) - np.log(count[rows])  # (M, C), as if classes were equal
    column = np.full(len(train.classes), -1)
    column[rows] = np.arange(len(rows))
    own = logits[np.arange(len(logits)), column[found.labels]]
    result: Labels = (logits > own[:, None]).sum(1).astype(np.int64)
    return result


def judge(found: Candidates, real: Real, cfg: Synthesise, curate: Curate) -> pd.DataFrame:
    """One row for each candidate: ``reason`` (empty: accepted), and the figures that it rests on.

    ``nearest`` is the row of the most alike real image and ``cosine`` its likeness.
    """
    unit, train = normalise(found.features), real.train
    cosine, where = nearest(unit, normalise(real.features))
    like = likeness(unit, found.labels, train, own=False)
    usual = likeness(normalise(train.features), train.labels, train, own=True)
    floor = float(np.nanquantile(usual, cfg.unusual)) if np.isfinite(usual).any() else -1.0
    rank = ranks(found, train)
    top = max(1, min(cfg.guesses, len(np.unique(train.labels)) // 10))
    reason = np.full(len(unit), ACCEPTED, object)
    reason[rank >= top] = OTHER
    reason[~(like >= floor)] = FAR
    reason[copies(found, real, curate, cfg.copy_cosine)] = COPY
    figures = {"cosine": cosine, "nearest": where, "likeness": like, "rank": rank}
    return pd.DataFrame({"reason": reason, **figures})


def choose(
    table: pd.DataFrame, features: Array, wanted: dict[int, int], limit: float
) -> pd.DataFrame:
    """Of the accepted, generators in turn and ``wanted[label]`` at most; says why not the others.

    ``table`` has reason, label and generator, rows as ``features`` (M, D).
    """
    unit = normalise(features)
    good = table[table["reason"] == ACCEPTED]
    turn = good.groupby(["label", "generator"]).cumcount()
    order = good.assign(turn=turn).sort_values(["turn", "generator"], kind="stable").index
    labels, reason = table["label"].to_numpy(np.int64), table["reason"].to_numpy(object)
    taken: dict[int, list[int]] = {label: [] for label in wanted}
    for row in order.to_numpy(np.int64).tolist():
        label = int(labels[row])
        mine = taken[label]
        if len(mine) >= wanted[label]:
            reason[row] = ENOUGH
        elif mine and float((unit[mine] @ unit[row]).max()) >= limit:
            reason[row] = REPEAT
        else:
            mine.append(row)
    return table.assign(reason=reason)
