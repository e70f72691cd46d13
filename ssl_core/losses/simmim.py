"""Masked pixel regression of SimMIM (arXiv 2111.09886)."""

from __future__ import annotations

from torch import Tensor

from ._common import check_shapes, full_precision, raised


def simmim(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the pixels of masked patches only.

    Args:
        pred, target: (B, L, P) pixels of patches, see ``mae.patchify``; ``target`` gets no
            gradient.
        mask: (B, L) bool, true where the patch was hidden.

    Raises:
        ValueError: shapes that do not fit, or nothing masked.
    """
    check_shapes(pred, target)
    if mask.shape != pred.shape[:2]:
        raise ValueError(f"mask {tuple(mask.shape)} must be {tuple(pred.shape[:2])}")
    with full_precision(pred):
        error = (raised(pred) - raised(target.detach())).abs().mean(-1)  # (B, L)
        count = mask.sum()
        if not count:
            raise ValueError("mask must hide at least one patch")
        return (error * mask).sum() / count
