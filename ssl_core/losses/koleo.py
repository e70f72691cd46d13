"""KoLeo: features spread by pushing nearest neighbours apart (arXiv 1806.03198, 2304.07193)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import full_precision, raised

EPS = 1e-8
STEEPEST = 1e3  # largest slope of -log(distance): nearer pairs are pushed no harder


def koleo(x: Tensor) -> Tensor:
    """Mean of -log(distance to the nearest other row), of the unit vectors of (B, D).

    Neighbours come from all ranks, so that more ranks are as one with the whole batch; DINOv2's
    own code looks within each rank only, which for one rank is the same. No gradient goes
    through the choice of the neighbour. Between rows that almost agree the slope is cut: it
    would grow to 1e8 in a direction that rounding decides.

    Raises:
        ValueError: a shape that is not 2-D, or fewer than two rows.
    """
    if x.ndim != 2:
        raise ValueError(f"shape {tuple(x.shape)} must be (batch, dimension)")
    with full_precision(x):
        z = dist.gather(F.normalize(raised(x), dim=1))  # (B, D) -> (N, D)
        if len(z) < 2:
            raise ValueError(f"batch of {len(z)} must hold at least 2: it has no neighbours")
        with torch.no_grad():
            nearest = (z @ z.T).fill_diagonal_(-2.0).argmax(1)
        gap = F.pairwise_distance(z, z[nearest], eps=EPS)  # (N,)
        logs: Tensor = _Log.apply(gap + EPS)  # type: ignore[no-untyped-call]
        return -logs.mean()


class _Log(torch.autograd.Function):
    """Logarithm whose slope is at most ``STEEPEST``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = x.reciprocal().clamp_max(STEEPEST)
        return grads[0] * slope
