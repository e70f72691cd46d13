"""Retrieval: of the pool, only what is near trusted images (DINOv2, arXiv 2304.07193, section 3).

For each trusted image the N nearest images of the pool are taken. With few trusted images that
gives few and alike ones; then the pool is clustered, and from each cluster that holds enough
trusted images N per trusted image are drawn. Trusted test images ask for nothing: what is learnt
from must not be chosen by what is measured with.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import Curate, Retrieval
from ..errors import HeadwaterError
from ..types import Array
from ._share import lottery
from ._vectors import Ints, assign, kmeans, normalise
from ._verdict import drop

NEEDS_SPLIT = True
REASON = "retrieval"
COLUMNS = ("label", "source", "group")
BLOCK = 1024  # trusted images searched for at a time
Mask = NDArray[np.bool_]


def trusted(frame: pd.DataFrame, selectors: tuple[str, ...]) -> Mask:
    """Rows that any of the selectors names: (N,).

    Raises:
        HeadwaterError: none is given, one names nothing, or a list cannot be read.
    """
    if not selectors:
        rule = "is empty: the step 'retrieval' needs trusted images"
        fix = "e.g. [source=museum], or a file with one sha256 per line"
        raise HeadwaterError("curate.retrieval.trusted", rule, fix)
    found = np.zeros(len(frame), dtype=bool)
    for selector in selectors:
        mask = _named(frame, selector)
        if not mask.any():
            where = f"curate.retrieval.trusted: '{selector}'"
            raise HeadwaterError(where, "names no image of the manifest", "check its spelling")
        found |= mask
    return found


def _named(frame: pd.DataFrame, selector: str) -> Mask:
    column, sign, value = selector.partition("=")
    if sign and column in COLUMNS:
        return (frame[column] == value).fillna(False).to_numpy(dtype=bool)
    try:
        shas = Path(selector).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        rule = f"is none of {', '.join(f'{c}=NAME' for c in COLUMNS)}, nor a list ({error})"
        where = f"curate.retrieval.trusted: '{selector}'"
        raise HeadwaterError(where, rule, "check its spelling") from error
    bad = [s for s in shas if not re.fullmatch("[0-9a-f]{64}", s)]
    if bad:
        raise HeadwaterError(selector, f"'{bad[0][:80]}' is no sha256", "one per line, lower case")
    return frame["sha256"].isin(shas).to_numpy(dtype=bool)


def nearest(queries: Array, pool: Array, count: int) -> tuple[Ints, Array]:
    """The ``count`` nearest rows of the pool by cosine: (Q, D), (N, D) -> (Q, k), (Q, k)."""
    import faiss

    count = min(count, len(pool))
    parts = [
        faiss.knn(queries[s : s + BLOCK], pool, count, metric=faiss.METRIC_INNER_PRODUCT)
        for s in range(0, len(queries), BLOCK)
    ]
    rows, cosines = np.concatenate([p[1] for p in parts]), np.concatenate([p[0] for p in parts])
    return rows.astype(np.int64), cosines


def by_clusters(
    queries: Array, pool: Array, shas: pd.Series, clusters: int, how: Retrieval, seed: int
) -> tuple[Mask, Ints]:
    """Rows taken of the clusters that hold ``how.hits`` queries, and each row's cluster."""
    centres = kmeans(pool, clusters, seed)
    labels = assign(pool, centres)
    hits = np.bincount(assign(queries, centres), minlength=len(centres))
    quota = np.where(hits >= how.hits, hits * how.neighbours, 0)
    drawn = pd.DataFrame({"cluster": labels, "ticket": lottery(shas, seed)})
    place = drawn.sort_values("ticket").groupby("cluster").cumcount().sort_index().to_numpy()
    return place < quota[labels], labels


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Drop kept training rows that are neither trusted nor retrieved.

    Raises:
        HeadwaterError: no usable trusted images.
    """
    frame, how = frame.copy(), cfg.retrieval
    alive = (frame["keep"] & (frame["split"] == "train")).to_numpy(dtype=bool)
    chosen = trusted(frame, how.trusted)
    seeds, rows = np.flatnonzero(chosen & alive), np.flatnonzero(~chosen & alive)
    if not len(seeds):
        rule = "names only images that are dropped or in the test split"
        raise HeadwaterError(f"curate.retrieval.trusted = {list(how.trusted)}", rule, "name more")
    if not len(rows):
        return frame
    queries, pool = normalise(features, seeds), normalise(features, rows)
    if how.hits:
        shas = frame["sha256"].iloc[rows]
        taken, labels = by_clusters(queries, pool, shas, cfg.clusters, how, seed)
        frame.loc[frame.index[rows], "cluster"] = labels
        why = "its cluster holds too few trusted images, or gave enough"
    else:
        taken = np.zeros(len(rows), dtype=bool)
        taken[nearest(queries, pool, how.neighbours)[0].ravel()] = True
        why = f"not among the {how.neighbours} nearest of any trusted image"
    return drop(frame, rows[~taken], REASON, why)
