"""Balance over a hierarchy of clusters (arXiv 2405.15613), uniform over concepts without labels.

k-means follows density: a frequent concept is cut into many clusters, and balance over these is
not balance over concepts. So clusters are clustered again, level by level, each time after
rounds of *resampling*: k-means on the images nearest their centroids alone, of which every
cluster has equally many. Sampling goes top down, water-filling at each node.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from ..config import Curate, Hierarchy
from ..errors import HeadwaterError
from ..types import Array
from ._share import cut, water_fill
from ._vectors import Ints, assign, kmeans, members, normalise

NEEDS_SPLIT = True
REASON = "hierarchical"
# Rows learnt from, per centroid: with sqrt(N) centroids the cost is linear from 10,000 rows on.
PER_CENTRE = 100
NARROWEST = 4  # clusters of the top level, where levels are not given


def default_levels(count: int) -> tuple[int, ...]:
    """sqrt(N), then a tenth of it, and so on; at least one level."""
    levels = [max(1, round(count**0.5))]
    while levels[-1] // 10 >= NARROWEST:
        levels.append(levels[-1] // 10)
    return tuple(levels)


def require_narrowing(levels: tuple[int, ...]) -> None:
    """Refuse levels that do not become fewer.

    Raises:
        HeadwaterError: as the name says.
    """
    if any(b >= a for a, b in itertools.pairwise(levels)) or min(levels) < 1:
        rule = "each level must have fewer clusters than the one below, and at least 1"
        raise HeadwaterError(f"curate.hierarchy.levels = {list(levels)}", rule, "e.g. [1000, 100]")


def resampled_kmeans(points: Array, count: int, rounds: int, seed: int) -> Array:
    """Centroids (C, D) of points (N, D), after ``rounds`` of resampling; 0: plain k-means.

    Each round learns from the points nearest each centroid, half the mean cluster's size of
    them, and reassigns all. Of more than 100 points per centroid a sample is drawn first, so
    that the cost is linear in N when C is sqrt(N).
    """
    rng = np.random.default_rng(seed)
    if len(points) > PER_CENTRE * count:
        points = points[np.sort(rng.choice(len(points), PER_CENTRE * count, replace=False))]
    centres = kmeans(points, count, seed, spherical=False)
    each = max(1, len(points) // len(centres) // 2)
    for turn in range(rounds):
        labels = assign(points, centres, spherical=False)
        distances = _squares(points, centres, labels)
        near = np.concatenate(
            [
                own[np.argsort(distances[own], kind="stable")[:each]]
                for own in members(labels, len(centres))
            ]
        )
        centres = kmeans(points[near], count, seed + turn + 1, spherical=False, iterations=10)
    return centres


def _squares(points: Array, centres: Array, labels: Ints) -> Array:
    """Squared distance of each point to its centre, (N,)."""
    found = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), 65_536):
        rows = slice(start, start + 65_536)
        found[rows] = np.square(points[rows] - centres[labels[rows]]).sum(axis=1)
    return found


def fit(points: Array, how: Hierarchy, seed: int) -> list[Ints]:
    """Which cluster each point, then each cluster of the level below, belongs to: (N,), (C1,) ...

    Empty clusters have no members and get nothing.
    """
    levels = how.levels or default_levels(len(points))
    require_narrowing(levels)
    parents, below = [], points
    for level, count in enumerate(levels):
        if len(below) <= count and level:
            break  # no fewer clusters than there are: nothing to cluster
        centres = resampled_kmeans(below, count, how.resampling, seed + 1000 * level)
        parents.append(assign(below, centres, spherical=False))
        below = centres
    return parents


def allocate(parents: list[Ints], target: int, rng: np.random.Generator) -> Ints:
    """How many images each cluster of the lowest level may keep: (C1,), ``target`` in all."""
    sizes = [np.bincount(parents[0], minlength=_count(parents, 0))]
    for level in range(1, len(parents)):
        width = _count(parents, level)
        sizes.append(
            np.bincount(parents[level], weights=sizes[-1], minlength=width).astype(np.int64)
        )
    quota = water_fill(sizes[-1].astype(np.int64), target, rng)
    for level in range(len(parents) - 1, 0, -1):
        lower = np.zeros(len(parents[level]), dtype=np.int64)
        for node, children in enumerate(members(parents[level], len(quota))):
            lower[children] = water_fill(sizes[level - 1][children], int(quota[node]), rng)
        quota = lower
    return quota


def _count(parents: list[Ints], level: int) -> int:
    """Clusters of a level: as many as the next level has points."""
    above = level + 1
    return len(parents[above]) if above < len(parents) else int(parents[level].max()) + 1


def apply(frame: pd.DataFrame, features: Array, cfg: Curate, seed: int) -> pd.DataFrame:
    """Keep ``cfg.keep`` of the kept training rows; they learn their cluster of the lowest level.

    Raises:
        HeadwaterError: levels that do not become fewer.
    """
    frame = frame.copy()
    pool = (frame["keep"] & (frame["split"] == "train")).to_numpy(dtype=bool)
    if not pool.any():
        return frame
    unit = normalise(features, np.flatnonzero(pool))
    parents = fit(unit, cfg.hierarchy, seed)
    quota = allocate(parents, round(cfg.keep * len(unit)), np.random.default_rng(seed))
    frame.loc[pool, "cluster"] = parents[0]
    rank = None
    if cfg.hierarchy.draw == "nearest":
        centres = np.zeros((len(quota), unit.shape[1]), dtype=np.float32)
        np.add.at(centres, parents[0], unit)
        centres /= np.maximum(np.bincount(parents[0], minlength=len(quota)), 1)[:, None]
        rank = _squares(unit, centres, parents[0]).astype(np.float64)
    return cut(frame, pool, quota, seed, REASON, rank)
