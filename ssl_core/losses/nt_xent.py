"""NT-Xent, the contrastive loss of SimCLR (arXiv 2002.05709)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_shapes, check_temperature, full_precision, raised, weighted_mean


def nt_xent(
    a: Tensor, b: Tensor, temperature: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean over 2N anchors of -s_ip/t + log sum_{j != i} exp(s_ij/t), s the cosine.

    Args:
        a, b: (B, d) projections of the two views, row i of both from image i; any scale.
        temperature: t > 0.
        weights: (B,) of the images, for the mean over anchors; None: equal.

    Negatives come from all ranks, so N is world * B.

    Raises:
        ValueError: unequal or non-2-D shapes, t <= 0, or fewer than two images.
    """
    check_temperature(temperature)
    check_shapes(a, b)
    if a.ndim != 2:
        raise ValueError(f"shape {tuple(a.shape)} must be (batch, dimension)")
    with full_precision(a):
        first = dist.gather(F.normalize(raised(a), dim=1))
        second = dist.gather(F.normalize(raised(b), dim=1))
        n = len(first)
        if n < 2:
            raise ValueError(f"batch of {n} must hold at least 2 images: it has no negatives")
        z = torch.cat([first, second])  # (2N, d)
        logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))  # (2N, 2N)
        partner = torch.arange(2 * n, device=z.device).roll(n)
        losses = F.cross_entropy(logits, partner, reduction="none")  # (2N,)
        return weighted_mean(losses, weights, views=2)
