"""Sinkhorn-Knopp: assignments that spread the images over all prototypes.

After Cuturi (arXiv 1306.0895), as DINOv2 (arXiv 2304.07193) and MSN (arXiv 2204.07141) use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import dist
from ._common import check_temperature, full_precision, raised


def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced softmax(logits / t): (M, K) -> (M, K), rows sum to 1; no gradient.

    A constant added to one prototype's logits changes nothing, so that centring is not needed.
    M is counted over all ranks and may differ between them, or be 0.

    Raises:
        ValueError: t <= 0, a shape that is not 2-D, or fewer than one iteration.
    """
    check_temperature(temperature)
    with full_precision(logits):
        x = raised(logits.detach())
        # One maximum for all ranks: samples must keep their weights against each other.
        return balance(((x - _largest(x)) / temperature).exp(), iterations)


def balance(q: Tensor, iterations: int = 3, prior: Tensor | None = None) -> Tensor:
    """Scale columns and rows of a positive (M, K) in turn; columns to equal sums, rows to 1.

    With ``prior`` (K,), of any scale, the columns' sums go as it instead.

    The papers also divide by M, K and the total: constants, which the last step cancels. The
    columns' sums are over all ranks. After a few iterations they are nearer to equal, not equal.

    Raises:
        ValueError: a shape that is not 2-D, or fewer than one iteration.
    """
    if q.ndim != 2 or (prior is not None and prior.shape != q.shape[1:]):
        raise ValueError(f"shape {tuple(q.shape)} must be (samples, prototypes), a prior the last")
    if iterations < 1:
        raise ValueError(f"iterations {iterations} must be at least 1")
    with full_precision(q):
        q = raised(q.detach())
        least = torch.finfo(q.dtype).tiny  # a prototype that nothing chooses keeps 0
        for _ in range(iterations):
            q = q / (dist.mean(q.sum(0)) * dist.world()).clamp_min(least)
            q = q if prior is None else q * prior.to(q)
            q = q / q.sum(1, keepdim=True).clamp_min(least)
        return q


def _largest(x: Tensor) -> Tensor:
    mine = x.amax() if x.numel() else x.new_tensor(float("-inf"))
    return dist.gather(mine.reshape(1)).amax()
