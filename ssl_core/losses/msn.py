"""Assignment of masked views to prototypes: MSN (arXiv 2204.07141), PMSN (arXiv 2210.07277)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_temperature, full_precision, holds, raised
from .sinkhorn import balance

Direction = Literal["mean_to_prior", "prior_to_mean"]


def assignments(z: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """log softmax(cosine / t) over prototypes: (..., d), (K, d) -> (..., K).

    Raises:
        ValueError: t <= 0, or widths that differ.
    """
    check_temperature(temperature)
    if z.shape[-1] != prototypes.shape[-1]:
        raise ValueError(f"shapes {tuple(z.shape)}, {tuple(prototypes.shape)} must end alike")
    with full_precision(z):
        cosine = F.normalize(raised(z), dim=-1) @ F.normalize(raised(prototypes), dim=-1).T
        return F.log_softmax(cosine / temperature, dim=-1)


@torch.no_grad()
def targets(
    z: Tensor,
    prototypes: Tensor,
    temperature: float,
    sharpen: float,
    iterations: int,
    prior: Tensor | None = None,
) -> Tensor:
    """Sharpened assignments (B, K), p^(1/sharpen) over its sum, then balanced; no gradient.

    Args:
        z: (B, d) of the teacher.
        iterations: of Sinkhorn-Knopp over all ranks; 0: none.
        prior: (K,) shares of the prototypes to balance to; None: equal ones.

    Raises:
        ValueError: a temperature <= 0, or widths that differ.
    """
    check_temperature(sharpen)
    p = assignments(z, prototypes, temperature * sharpen).exp()  # softmax(s/t)^(1/T), normalised
    return balance(p, iterations, prior) if iterations else p


def msn(
    anchors: Tensor,
    target: Tensor,
    prototypes: Tensor,
    temperature: float,
    weight: float = 1.0,
    prior: Tensor | None = None,
    direction: Direction = "mean_to_prior",
) -> Tensor:
    """Mean cross-entropy of A anchors with their image's target + weight * divergence.

    Args:
        anchors: (A, B, d) projections of the student's views; any scale.
        target: (B, K) of :func:`targets`; never gets gradient.
        prototypes: (K, d); any scale.
        prior: (K,), see :func:`divergence`, here of the anchors' mean over all ranks.

    Raises:
        ValueError: t <= 0, shapes that do not fit, or a bad prior.
    """
    shape = (anchors.shape[1], len(prototypes)) if anchors.ndim == 3 else None
    if target.shape != shape:
        raise ValueError(
            f"shapes {tuple(anchors.shape)}, {tuple(target.shape)} must be (A, B, d), (B, K)"
        )
    with full_precision(anchors):
        log_p = assignments(anchors, prototypes, temperature)  # (A, B, K)
        cross = -(target.detach() * log_p).sum(-1).mean()
        mean = dist.gather(log_p.exp().mean((0, 1)).unsqueeze(0)).mean(0)  # (A, B, K) -> (K,)
        return cross + weight * divergence(mean, prior, direction)


def divergence(
    mean: Tensor, prior: Tensor | None = None, direction: Direction = "mean_to_prior"
) -> Tensor:
    """KL(mean || prior) of two distributions (K,), or KL(prior || mean) for "prior_to_mean".

    Without a prior it is the uniform one, and the value log K - entropy(mean): MSN's. Any
    positive prior is scaled to sum 1. Which direction PMSN's authors took is not settled;
    lightly's ``PMSNLoss`` takes "prior_to_mean".

    Raises:
        ValueError: a prior of another shape, or not positive.
    """
    pi = torch.ones_like(mean) if prior is None else prior.to(mean)
    if pi.shape != mean.shape or not holds((pi > 0).all()):
        raise ValueError(f"prior {tuple(pi.shape)} must be {tuple(mean.shape)} and positive")
    log_pi = (pi / pi.sum()).log()
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    if direction == "mean_to_prior":
        return (mean * (log_mean - log_pi)).sum()
    return (log_pi.exp() * (log_pi - log_mean)).sum()


def power_law(size: int, exponent: float) -> Tensor:
    """Prior (K,) with masses k^-exponent over their sum; exponent 0 is uniform."""
    mass = torch.arange(1, size + 1, dtype=torch.float64) ** -exponent
    return mass / mass.sum()
