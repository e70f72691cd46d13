"""Cosines among both views of a batch, for the losses whose negatives are the other images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_shapes, raised


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are (B, d) of equal shape."""
    check_shapes(a, b)
    if a.ndim != 2:
        raise ValueError(f"shape {tuple(a.shape)} must be (batch, dimension)")


def check_negatives(n: int) -> None:
    """Raise ValueError unless there are two images or more in the global batch."""
    if n < 2:
        raise ValueError(f"batch of {n} must hold at least 2 images: it has no negatives")


def partners(n: int, device: torch.device) -> Tensor:
    """Row of the same image's other view, of 2N rows, first views first: (2N,) int64."""
    return torch.arange(2 * n, device=device).roll(n)


def pair_logits(a: Tensor, b: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Cosines over the temperature among the 2N views of all ranks, and those of partners.

    (B, d), (B, d) -> (2N, 2N) with -inf on the diagonal, (2N,); N is world * B. Call it with
    autocast off.

    Raises:
        ValueError: fewer than two images.
    """
    first = dist.gather(F.normalize(raised(a), dim=1))
    second = dist.gather(F.normalize(raised(b), dim=1))
    n = len(first)
    check_negatives(n)
    z = torch.cat([first, second])  # 2 x (N, d) -> (2N, d)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))  # (2N, 2N)
    return logits, logits.gather(1, partners(n, z.device).unsqueeze(1)).squeeze(1)
