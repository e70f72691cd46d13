"""Pictures as PNG bytes, for the orchestrator's markdown and wherever else one is wanted.

The HTML page draws the same figures as inline SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..types import Array
from . import _figures, _images, _select
from ._figures import Names
from ._theme import png


def curves(log: Sequence[Mapping[str, Any]]) -> bytes:
    """Training curves from the records of pretrain/log.jsonl."""
    return png(_figures.curves(log))


def tail(before: Mapping[str, int], after: Mapping[str, int] | None = None) -> bytes:
    """Images per class (name -> count), optionally after curation."""
    return png(_figures.tail(before, after))


def clusters(before: Mapping[str, int], after: Mapping[str, int]) -> bytes:
    """Cluster sizes before and after balancing (cluster -> count)."""
    return png(_figures.clusters(before, after))


def timeline(history: pd.DataFrame, events: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Drift and accuracy by day: rows of monitor.history, events {"date", "text"}."""
    return png(_figures.timeline(history, events))


def intervals(rows: pd.DataFrame, title: str = "") -> bytes:
    """Values with intervals: columns slice, encoder, value, low, high."""
    return png(_figures.intervals(rows, title))


def scatter(features: Array, labels: Names, sources: Names, seed: int = 0) -> bytes:
    """Map of features (N, D) with names (N,) of class and source."""
    return png(_figures.embedding_map(features, labels, sources, seed))


def embedding_map(embeddings: Path, limit: int = 1000, seed: int = 0) -> bytes:
    """Map of held-out images of products/embeddings."""
    found = _select.points(embeddings, limit, seed)
    return scatter(found.features, found.labels, found.sources, seed)


def retrieval_grid(embeddings: Path, shards: Path, queries: int = 8, seed: int = 0) -> bytes:
    """Held-out queries (left) and their nearest training images; green: same class, red: not."""
    store = _images.Shards(shards)
    rows, marks = [], []
    for query, hits in _select.retrieval(embeddings, queries, seed):
        rows.append([store.get(h.key) for h in (query, *hits)])
        marks.append([h.right for h in (query, *hits)])
    return _images.sheet(rows, marks)


def patch_maps(pretrain: Path, shards: Path, count: int = 8, seed: int = 0) -> bytes | None:
    """Images above their patch features as colours; None for encoders without a patch grid."""
    pairs = _select.patch_maps(pretrain, shards, count, seed)
    if not pairs:
        return None
    rows = [[image for image, _ in pairs], [_images.blocks(colours) for _, colours in pairs]]
    return _images.sheet(rows, [[None] * len(pairs)] * 2)


def duplicates(curated: Path, root: Path, groups: int = 8) -> bytes | None:
    """Groups of duplicates, one row each, the kept image first; None if there is no group."""
    frame = pd.read_parquet(curated / "curated.parquet")
    found = [thumbs for _, thumbs in _select.duplicates(frame, root, groups)]
    return _images.sheet(found, [[None] * len(t) for t in found]) if found else None
