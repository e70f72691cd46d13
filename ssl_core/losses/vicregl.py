"""VICRegL: VICReg on pooled vectors and on matched cells of the feature maps (arXiv 2210.01571)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from .. import dist
from ._common import full_precision, raised
from .vicreg import covariance, invariance, variance

Weights = tuple[float, float, float]  # of invariance, variance and covariance
WEIGHTS = (25.0, 25.0, 1.0)
GLOBAL = 2  # the first two views are compared with all others


def cells(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Centres of a map's cells in the original image: (B, 5) -> (B, h*w, 2) of (y, x).

    ``box`` is top, left, height, width of the view and 1 where it was mirrored (then the columns
    run from right to left); any unit, kept.
    """
    h, w = grid
    down = (torch.arange(h, device=box.device, dtype=box.dtype) + 0.5) / h
    across = ((torch.arange(w, device=box.device, dtype=box.dtype) + 0.5) / w).expand(len(box), w)
    across = torch.where(box[:, 4:] > 0.5, across.flip(1), across)  # (B, w)
    y = box[:, 0:1] + box[:, 2:3] * down  # (B, h)
    x = box[:, 1:2] + box[:, 3:4] * across  # (B, w)
    both = [y.unsqueeze(2).expand(-1, h, w), x.unsqueeze(1).expand(-1, h, w)]
    return torch.stack(both, dim=-1).flatten(1, 2)  # (B, h, w, 2) -> (B, h*w, 2)


@torch.no_grad()
def nearest(a: Tensor, b: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """Each row's nearest neighbour by L2; the ``count`` closest pairs (None: all), closest first.

    (B, L, d), (B, M, d) -> indices into a and into b, both (B, min(count, L)).
    """
    exact = "donot_use_mm_for_euclid_dist"  # the fast way is wrong near 0, where it matters
    distance, partner = torch.cdist(raised(a), raised(b), compute_mode=exact).min(-1)  # (B, L)
    order = distance.argsort(dim=1, stable=True)[:, :count]
    return order, partner.gather(1, order)


def local(a: Tensor, b: Tensor, pairs: tuple[Tensor, Tensor], weights: Weights = WEIGHTS) -> Tensor:
    """VICReg on the matched cells of (B, L, D) and (B, M, D); ``pairs`` as from :func:`nearest`.

    Variance and covariance are over the global batch, for each rank of the match by itself.
    """
    first, second = (dist.gather(_pick(x, i)) for x, i in zip((a, b), pairs, strict=True))
    spread = (variance(first) + variance(second)) / 2
    # A half of both sides, unlike VICReg's sum.
    common = (covariance(first) + covariance(second)) / 2
    return weights[0] * invariance(first, second) + weights[1] * spread + weights[2] * common


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """(B, L, D), (B, K) -> (B, K, D) in full precision."""
    return raised(x).gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def local_pair(
    a: Tensor,
    b: Tensor,
    places: tuple[Tensor, Tensor],
    count: tuple[int, int],
    all_features: bool = True,
    weights: Weights = WEIGHTS,
) -> Tensor:
    """Feature matching plus location matching of two maps, each the mean of both directions.

    Args:
        a, b: (B, L, D), (B, M, D).
        places: (B, L, 2), (B, M, 2) from :func:`cells`.
        count: pairs kept from a to b and from b to a.
        all_features: feature matching keeps all pairs (the authors' code), else ``count``.

    Raises:
        ValueError: maps and places that do not fit, or a global batch of one.
    """
    for x, at in zip((a, b), places, strict=True):
        if x.ndim != 3 or at.shape != (*x.shape[:2], 2):
            raise ValueError(f"shapes {tuple(x.shape)}, {tuple(at.shape)} must be (B, L, D|2)")
    by_feature: tuple[int | None, int | None] = (None, None) if all_features else count
    at_a, at_b = places
    terms = [
        local(a, b, nearest(a, b, by_feature[0]), weights),
        local(b, a, nearest(b, a, by_feature[1]), weights),
        local(a, b, nearest(at_a, at_b, count[0]), weights),
        local(b, a, nearest(at_b, at_a, count[1]), weights),
    ]
    return torch.stack(terms).sum() / 2


def pooled(views: Sequence[Tensor], weights: Weights = WEIGHTS) -> Tensor:
    """VICReg on V >= 2 pooled embeddings (B, d).

    Invariance is the mean over pairs of one of the first two views and any other; variance and
    covariance are means over views (VICReg has the sum of the two covariances).

    Raises:
        ValueError: fewer than two views, unequal shapes, or a global batch of one.
    """
    every = [dist.gather(raised(view)) for view in views]  # V x (N, d)
    close = torch.stack([invariance(every[i], every[j]) for i, j in _pairs(len(views))]).mean()
    spread = torch.stack([variance(view) for view in every]).mean()
    common = torch.stack([covariance(view) for view in every]).mean()
    return weights[0] * close + weights[1] * spread + weights[2] * common


def maps(
    views: Sequence[Tensor],
    places: Sequence[Tensor],
    count: tuple[int, int],
    all_features: bool = True,
    weights: Weights = WEIGHTS,
) -> Tensor:
    """Mean of :func:`local_pair` over the pairs of :func:`pooled`.

    The authors' code overwrites the sum over pairs, so that the last one counts alone; the paper's
    mean is taken here.

    Raises:
        ValueError: fewer than two views, or as :func:`local_pair`.
    """
    with full_precision(views[0]):
        found = [
            local_pair(views[i], views[j], (places[i], places[j]), count, all_features, weights)
            for i, j in _pairs(len(views))
        ]
        return torch.stack(found).mean()


def _pairs(views: int) -> list[tuple[int, int]]:
    if views < 2:
        raise ValueError(f"{views} view must be at least 2: a view has no partner in itself")
    return [(i, j) for i, j in permutations(range(views), 2) if i < GLOBAL]
