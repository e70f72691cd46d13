"""Predicting a target's direction: SimSiam (arXiv 2011.10566) and BYOL (arXiv 2006.07733)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ._common import full_precision, raised
from ._pairs import check_pair


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of -cos over rows, in [-1, 1]: SimSiam's D.

    Args:
        prediction: (B, d), any scale; its gradient is orthogonal to it.
        target: (B, d); never gets gradient.

    Each row stands alone, so the mean over equal ranks is that of the global batch.

    Raises:
        ValueError: unequal or non-2-D shapes.
    """
    check_pair(prediction, target)
    with full_precision(prediction):
        p = F.normalize(raised(prediction), dim=1)
        z = F.normalize(raised(target.detach()), dim=1)
        return -(p * z).sum(1).mean()


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of the unit rows, in [0, 4]: 2 + 2 :func:`negative_cosine`."""
    return 2 + 2 * negative_cosine(prediction, target)
