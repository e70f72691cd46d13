"""NT-Xent, the contrastive loss of SimCLR (arXiv 2002.05709)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ._common import check_temperature, full_precision, weighted_mean
from ._pairs import check_pair, pair_logits, partners


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
    check_pair(a, b)
    with full_precision(a):
        logits, _ = pair_logits(a, b, temperature)  # (2N, 2N)
        partner = partners(len(logits) // 2, logits.device)
        losses = F.cross_entropy(logits, partner, reduction="none")  # (2N,)
        return weighted_mean(losses, weights, views=2)
