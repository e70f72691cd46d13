"""InfoNCE between two sets of rows: MoCo v3 (arXiv 2104.02057) and CLIP (arXiv 2103.00020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_temperature, full_precision, holds, raised, weighted_mean
from ._pairs import check_negatives, check_pair


def moco(
    query: Tensor, key: Tensor, temperature: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """2t times the mean cross-entropy of finding each query's key among the keys of all ranks.

    The factor keeps the gradient's size when t changes: with respect to the cosines it is
    2(P - I)/N. Without anything told apart one call gives 2t log N, N being world * B.

    Args:
        query, key: (B, d), row i of both from image i; any scale. Keys get no gradient.
        temperature: t > 0.
        weights: (B,) of the images; None: equal.

    Raises:
        ValueError: unequal or non-2-D shapes, t <= 0, or fewer than two images.
    """
    check_temperature(temperature)
    check_pair(query, key)
    with full_precision(query):
        q = F.normalize(raised(query), dim=1)
        k = dist.gather(F.normalize(raised(key.detach()), dim=1))  # (B, d) -> (N, d)
        check_negatives(len(k))
        own = torch.arange(len(q), device=q.device) + dist.rank() * len(q)
        losses = F.cross_entropy(q @ k.T / temperature, own, reduction="none")  # (B,)
        return 2 * temperature * weighted_mean(dist.gather(losses), weights)


def clip(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Mean of both cross-entropies of finding the partner: a in b, and b in a.

    Args:
        a, b: (B, d), row i of both from image i; any scale. Both learn.
        scale: (), factor of the cosines (1/t), > 0; it may learn.

    Without anything told apart it is log N, N being world * B.

    Raises:
        ValueError: unequal or non-2-D shapes, scale <= 0, or fewer than two images.
    """
    if not holds(scale > 0):
        raise ValueError(f"scale {float(scale)} must be positive")
    check_pair(a, b)
    with full_precision(a):
        first = dist.gather(F.normalize(raised(a), dim=1))
        second = dist.gather(F.normalize(raised(b), dim=1))
        check_negatives(len(first))
        logits = scale * (first @ second.T)  # (N, N)
        own = torch.arange(len(first), device=a.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
