"""SupCon, the contrastive loss with labels (arXiv 2004.11362, L_out)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_temperature, full_precision, raised
from ._pairs import check_negatives

UNKNOWN = -1


def supcon(
    z: Tensor, labels: Tensor, temperature: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean over anchors of the mean over positives p of -s_ip/t + log sum_{a != i} exp(s_ia/t).

    s is the cosine; positives are the other views of the image and all views of images with the
    same label. Unlike in nt_xent's logarithm of a sum, each positive has its own logarithm.

    Args:
        z: (V, B, d) projections of V views, row i of each from image i; any scale.
        labels: (B,) int64; a negative label is unknown: such an image is a class of its own.
        temperature: t > 0.
        weights: (B,) of the images, for the mean over anchors; None: equal.

    Anchors come from all ranks. One without a positive is left out of the mean; without any
    anchor the loss is 0.

    Raises:
        ValueError: shapes that do not fit, t <= 0, or fewer than two images.
    """
    check_temperature(temperature)
    if z.ndim != 3 or labels.shape != z.shape[1:2]:
        raise ValueError(f"shapes {tuple(z.shape)}, {tuple(labels.shape)} must be (V, B, d), (B,)")
    with full_precision(z):
        views = [dist.gather(F.normalize(raised(view), dim=1)) for view in z]
        n = len(views[0])
        check_negatives(n)
        every = torch.cat(views)  # V x (N, d) -> (V*N, d)
        itself = torch.eye(len(every), dtype=torch.bool, device=z.device)
        logits = (every @ every.T / temperature).masked_fill(itself, float("-inf"))
        positive = _same(dist.gather(labels)).repeat(len(views), len(views)) & ~itself
        # where, not a product: the masked diagonal holds -inf.
        log_p = torch.where(positive, F.log_softmax(logits, dim=1), 0.0)  # (V*N, V*N)
        count = positive.sum(1)
        losses = -log_p.sum(1) / count.clamp_min(1)  # (V*N,)
        if weights is not None:
            losses = losses * dist.gather(weights.to(losses.dtype)).repeat(len(views))
        return losses.sum() / (count > 0).sum().clamp_min(1)


def _same(labels: Tensor) -> Tensor:
    """(N,) -> (N, N) bool: equal known labels, and each image with itself."""
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return own | ((labels == labels.unsqueeze(1)) & (labels > UNKNOWN))
