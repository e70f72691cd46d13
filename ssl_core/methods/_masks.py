"""Random masks over a square grid of patches; from torch's global generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import HeadwaterError
from ..models import Encoder

TRIES = 10  # per block
ASPECT = 0.3  # smallest; the largest is its inverse


def side(encoder: Encoder, image_size: int) -> int:
    """Patches per side of a square image.

    Raises:
        HeadwaterError: the encoder is no ViT, or its patch size does not divide the image.
    """
    if not encoder.is_vit or image_size % encoder.stride:
        raise HeadwaterError(
            f"backbone '{encoder.name}' at {image_size} px",
            "is not a ViT whose patch size divides the image",
            "set pretrain.backbone to a vit_*, and crop_size to a multiple of patch_size",
        )
    return image_size // encoder.stride


def coin_counts(batch: int, share: float, ratio: tuple[float, float], patches: int) -> Tensor:
    """How many patches to hide in each image (iBOT): (batch,) int64.

    With chance ``share`` a part uniform in ``ratio``, else none.
    """
    part = ratio[0] + (ratio[1] - ratio[0]) * torch.rand(batch)
    return (part * patches).long() * (torch.rand(batch) < share)


def spread_counts(batch: int, share: float, ratio: tuple[float, float], patches: int) -> Tensor:
    """The same for DINOv2: exactly ``int(share * batch)`` images, with parts that cover ``ratio``.

    Image i of n draws from the i-th of n equal pieces of ``ratio``; then all are shuffled.
    """
    n = int(share * batch)
    edges = torch.linspace(ratio[0], ratio[1], n + 1)
    part = edges[:-1] + (edges[1:] - edges[:-1]) * torch.rand(n)
    counts = torch.cat([(part * patches).long(), torch.zeros(batch - n, dtype=torch.int64)])
    return counts[torch.randperm(batch)]


def block_masks(counts: Tensor, side: int, smallest: float) -> Tensor:
    """Masks (N, side*side) bool made of rectangles, with at most ``counts`` (N,) patches each.

    After BEiT (arXiv 2106.08254): add rectangles of at least ``smallest`` patches (fewer where
    fewer are wanted) until the count is met, or none of ``TRIES`` proposals fits.
    """
    mask = torch.zeros(len(counts), side * side, dtype=torch.bool, device=counts.device)
    wanted = counts.float()
    while len(rows := wanted.nonzero().squeeze(1)):  # the R images that want more
        block = _blocks(wanted[rows], side, smallest)  # (R, TRIES, L)
        fresh = (block & ~mask[rows].unsqueeze(1)).sum(-1)  # (R, TRIES)
        fits = (fresh > 0) & (fresh <= wanted[rows].unsqueeze(1))
        found = fits.any(1)
        chosen = torch.arange(len(rows), device=rows.device), fits.int().argmax(1)  # the first
        mask[rows] |= block[chosen] & found.unsqueeze(1)
        wanted[rows] = (wanted[rows] - fresh[chosen]) * found  # none found: this image is done
    return mask


def _blocks(wanted: Tensor, side: int, smallest: float) -> Tensor:
    """Proposals (N, TRIES, side*side); empty where the rectangle is too large."""
    u = torch.rand(4, len(wanted), TRIES, device=wanted.device)
    most = wanted.unsqueeze(1)  # (N, 1)
    least = most.clamp_max(smallest)
    area = least + (most - least) * u[0]
    aspect = torch.exp(math.log(ASPECT) * (1 - 2 * u[1]))
    sizes = [(area * aspect).sqrt().round(), (area / aspect).sqrt().round()]
    fits = (sizes[0] < side) & (sizes[1] < side)
    place = torch.arange(side, device=wanted.device)
    spans = []
    for size, v in zip(sizes, u[2:], strict=True):
        start = (v * (side - size + 1)).floor().unsqueeze(-1)
        spans.append((place >= start) & (place < start + size.unsqueeze(-1)))  # (N, TRIES, side)
    inside: Tensor = spans[0].unsqueeze(-1) & spans[1].unsqueeze(-2)  # (N, TRIES, side, side)
    return inside.flatten(2) & fits.unsqueeze(-1)


def cell_masks(batch: int, cells: int, unit: int, hidden: int, device: torch.device) -> Tensor:
    """Masks (batch, L) that hide ``hidden`` of cells x cells squares of ``unit`` patches."""
    order = torch.rand(batch, cells**2, device=device).argsort(1)
    mask: Tensor = (order < hidden).unflatten(1, (cells, cells))  # an order holds each rank once
    return mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2).flatten(1)
