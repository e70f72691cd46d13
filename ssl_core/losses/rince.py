"""RINCE, an InfoNCE that bears false positives (arXiv 2201.04309)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import check_temperature, full_precision, weighted_mean
from ._pairs import check_pair, pair_logits

LARGEST = 80.0  # exp of more overflows float32


def rince(
    a: Tensor,
    b: Tensor,
    temperature: float | Tensor,
    q: float,
    lam: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean over 2N anchors of (-P^q + (lam * S)^q) / q.

    P = exp(s_ip/t), S = sum_{j != i} exp(s_ij/t), partner p included, s the cosine. For q to 0
    it is NT-Xent + log lam; for q = 1 it is linear in P, which makes it symmetric: false
    partners then do no systematic harm. Values are unbounded and depend on the cosines' level.

    Args:
        a, b: (B, d) projections of the two views, row i of both from image i; any scale.
        temperature: t > 0, and q/t at most ``LARGEST``.
        q: in (0, 1].
        lam: in (0, 1], weight of the negatives; keep (lam * S)^q near P^q.
        weights: (B,) of the images; None: equal.

    Negatives come from all ranks, so N is world * B.

    Raises:
        ValueError: an argument out of range, unequal or non-2-D shapes, fewer than two images.
    """
    check_temperature(temperature)
    for name, value in (("q", q), ("lam", lam)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} {value} must be in (0, 1]")
    if q / temperature > LARGEST:
        raise ValueError(f"q / temperature {float(q / temperature)} must be at most {LARGEST}")
    check_pair(a, b)
    with full_precision(a):
        logits, positive = pair_logits(a, b, temperature)  # (2N, 2N), (2N,)
        below = math.log(lam) + logits.logsumexp(1)
        # expm1: the two ones cancel, and nothing is lost to rounding when q is small.
        losses = (torch.expm1(q * below) - torch.expm1(q * positive)) / q  # (2N,)
        return weighted_mean(losses, weights, views=2)
