"""Masked pixel regression of SimMIM (arXiv 2111.09886)."""

from __future__ import annotations

from torch import Tensor

from ._common import difference, full_precision, masked_mean


def simmim(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the pixels of masked patches only.

    Args:
        pred, target: (B, L, P) pixels of patches, see ``mae.patchify``; ``target`` gets no
            gradient.
        mask: (B, L) bool, true where the patch was hidden.

    Raises:
        ValueError: shapes that do not fit, or nothing masked.
    """
    with full_precision(pred):
        return masked_mean(difference(pred, target, mask).abs().mean(-1), mask)
