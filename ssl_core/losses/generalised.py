"""Contrastive losses as alignment + weight * distribution (arXiv 2011.02803).

Decoupled contrastive learning is arXiv 2110.06848. How the sliced-Wasserstein family scales its
terms and its priors is from memory of the paper.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_shapes, check_temperature, full_precision, raised
from ._pairs import check_negatives, check_pair, pair_logits, partners

Prior = Literal["uniform-sphere", "uniform-cube", "normal"]


def nt_xent(a: Tensor, b: Tensor, temperature: float | Tensor, weight: float = 1.0) -> Tensor:
    """-mean s_ip/t + weight * mean_i log sum_{j != i} exp(s_ij/t); weight 1 is NT-Xent.

    Args:
        a, b: (B, d) projections of the two views, row i of both from image i; any scale.
        temperature: t > 0.
        weight: of the distribution term, >= 0.

    Raises:
        ValueError: an argument out of range, unequal or non-2-D shapes, fewer than two images.
    """
    _check(a, b, temperature, weight)
    with full_precision(a):
        logits, positive = pair_logits(a, b, temperature)  # (2N, 2N), (2N,)
        return weight * logits.logsumexp(1).mean() - positive.mean()


def decoupled(a: Tensor, b: Tensor, temperature: float | Tensor, weight: float = 1.0) -> Tensor:
    """As :func:`nt_xent`, with the partner left out of the sum: only negatives push.

    A mean over 2N anchors, where the paper sums.

    Raises:
        ValueError: as :func:`nt_xent`.
    """
    _check(a, b, temperature, weight)
    with full_precision(a):
        logits, positive = pair_logits(a, b, temperature)  # (2N, 2N), (2N,)
        partner = partners(len(logits) // 2, logits.device).unsqueeze(1)
        negatives = logits.scatter(1, partner, float("-inf"))
        return weight * negatives.logsumexp(1).mean() - positive.mean()


def swd(a: Tensor, b: Tensor, prior: Prior, weight: float = 1.0) -> Tensor:
    """Mean squared difference of partners + weight * distance of all 2N rows to the prior.

    Args:
        a, b: (B, d); made unit for the sphere, as they are for the cube and the normal law.
        prior: uniform on the unit sphere, uniform in [-1, 1]^d, or standard normal.
        weight: >= 0.

    Directions and the prior's sample come from torch's global generator, those of rank 0.

    Raises:
        ValueError: unknown prior, weight < 0, unequal or non-2-D shapes, fewer than two images.
    """
    _check(a, b, 1.0, weight)
    with full_precision(a):
        x, y = (raised(t) for t in (a, b))
        if prior == "uniform-sphere":
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        z = torch.cat([dist.gather(x), dist.gather(y)])  # 2 x (B, d) -> (2N, d)
        check_negatives(len(z) // 2)
        n = len(z) // 2
        sample, directions = _shared(draw(prior, z)), _shared(orthogonal(z))
        apart = sliced_wasserstein(z, sample, directions)
        return F.mse_loss(z[:n], z[n:]) + weight * apart


def sliced_wasserstein(z: Tensor, sample: Tensor, directions: Tensor) -> Tensor:
    """Mean squared 2-Wasserstein distance of the projections of two samples of equal size.

    Args:
        z: (N, d), learns.
        sample: (N, d), of the prior; never gets gradient.
        directions: (d, m), unit columns.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_shapes(z, sample)
    if directions.ndim != 2 or len(directions) != z.shape[-1]:
        raise ValueError(f"directions {tuple(directions.shape)} must be ({z.shape[-1]}, m)")
    with full_precision(z):
        mine = (raised(z) @ directions).sort(0).values  # (N, d) @ (d, m) -> (N, m)
        other = (raised(sample.detach()) @ directions).sort(0).values
        return F.mse_loss(mine, other)


def draw(prior: Prior, like: Tensor) -> Tensor:
    """A sample of the prior, of the shape (N, d), type and device of ``like``.

    Raises:
        ValueError: unknown prior.
    """
    if prior == "uniform-cube":
        return 2 * torch.rand_like(like) - 1
    if prior == "normal":
        return torch.randn_like(like)
    if prior == "uniform-sphere":
        return F.normalize(torch.randn_like(like), dim=1)
    raise ValueError(f"prior {prior!r} must be uniform-sphere, uniform-cube or normal")


def orthogonal(like: Tensor) -> Tensor:
    """A random orthogonal (d, d) for ``like`` (N, d). Signs are of no matter to a distance."""
    d = like.shape[1]
    q: Tensor = torch.linalg.qr(torch.randn(d, d, dtype=like.dtype, device=like.device)).Q
    return q


def _shared(x: Tensor) -> Tensor:
    """Rank 0's ``x`` on every rank: each draws from a generator of its own."""
    return dist.gather(x)[: len(x)]


def _check(a: Tensor, b: Tensor, temperature: float | Tensor, weight: float) -> None:
    check_temperature(temperature)
    check_pair(a, b)
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight {weight} must be 0 or more")
