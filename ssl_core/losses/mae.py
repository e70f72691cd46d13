"""Masked patch regression of MAE (arXiv 2111.06377)."""

from __future__ import annotations

from torch import Tensor

from ._common import difference, full_precision, masked_mean, raised


def patchify(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, L, size*size*C), patches row by row, pixels as (row, column, channel).

    Raises:
        ValueError: a side is not a multiple of ``size``.
    """
    b, c, height, width = images.shape
    if height % size or width % size:
        raise ValueError(f"sides {height}x{width} must be multiples of the patch size {size}")
    h, w = height // size, width // size
    x = images.reshape(b, c, h, size, w, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, size * size * c)


def unpatchify(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`patchify` for a ``grid`` of (h, w) patches."""
    (b, _, width), (h, w) = patches.shape, grid
    c = width // size**2
    x = patches.reshape(b, h, w, size, size, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h * size, w * size)


def targets(images: Tensor, size: int, norm_pix: bool) -> Tensor:
    """Patches to predict (B, L, P), without gradient.

    ``norm_pix`` standardises each patch by its own mean and unbiased variance (+1e-6).
    """
    patches = patchify(raised(images.detach()), size)
    if not norm_pix:
        return patches
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def mae(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over masked patches only.

    Args:
        pred, target: (B, L, P); ``target`` gets no gradient.
        mask: (B, L) bool, true where the patch was hidden.

    Raises:
        ValueError: shapes that do not fit, or nothing masked.
    """
    with full_precision(pred):
        return masked_mean(difference(pred, target, mask).square().mean(-1), mask)
