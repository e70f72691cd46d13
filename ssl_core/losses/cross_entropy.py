"""Cross-entropy over the labelled images of a batch, also against class prototypes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_temperature, full_precision, holds, raised


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, balanced: bool = False
) -> Tensor:
    """Mean over labelled images of all ranks; 0 if there is none.

    Args:
        logits: (N, C).
        labels: (N,) int64, negative where unknown.
        smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        balanced: weigh by inverse class frequency within the global batch, so that the loss is
            the mean over the classes present of each class's mean.

    Raises:
        ValueError: shapes that do not fit, a label of C or more, or smoothing outside [0, 1].
    """
    _check(logits, labels)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing {smoothing} must lie in [0, 1]")
    with full_precision(logits):
        target = labels.clamp_min(0)  # rows without a label are masked below
        losses = F.cross_entropy(
            raised(logits), target, reduction="none", label_smoothing=smoothing
        )
        return _mean(losses, labels, logits.shape[1], balanced)


def prototype(
    z: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    exclude_own: bool = False,
) -> Tensor:
    """-s_y/t + log sum_j exp(s_j/t), s_j the cosine with class prototype j (arXiv 2103.14267).

    Args:
        z: (N, d) projections; any scale.
        prototypes: (C, d), learned; any scale.
        labels: (N,) int64; images with a negative label take no part.
        temperature: t > 0.
        exclude_own: leave j = y out of the sum. Which form the paper uses is not verified; this
            one has no lower bound of 0.

    Mean over labelled images of all ranks; 0 if there is none.

    Raises:
        ValueError: shapes that do not fit, t <= 0, a label of C or more, or ``exclude_own`` with
            a single class.
    """
    check_temperature(temperature)
    if z.ndim != 2 or prototypes.ndim != 2 or z.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"shapes {tuple(z.shape)}, {tuple(prototypes.shape)} must be (N, d), (C, d)"
        )
    with full_precision(z):
        unit = F.normalize(raised(z), dim=1)
        logits = unit @ F.normalize(raised(prototypes), dim=1).T / temperature  # (N, C)
        if not exclude_own:
            return cross_entropy(logits, labels)
        _check(logits, labels)
        if logits.shape[1] < 2:
            raise ValueError("a single class leaves no other in the sum")
        target = labels.clamp_min(0).unsqueeze(1)
        others = logits.scatter(1, target, float("-inf"))
        losses = others.logsumexp(1) - logits.gather(1, target).squeeze(1)  # (N,)
        return _mean(losses, labels, logits.shape[1], balanced=False)


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"shapes {tuple(logits.shape)}, {tuple(labels.shape)} must be (N, C), (N,)"
        )
    if len(labels) and not holds(labels.max() < logits.shape[1]):
        raise ValueError(f"label {int(labels.max())} must be below {logits.shape[1]} classes")


def _mean(losses: Tensor, labels: Tensor, classes: int, balanced: bool) -> Tensor:
    """Mean of per-image losses (N,) over the labelled ones of all ranks."""
    losses, labels = dist.gather(losses), dist.gather(labels)
    known = labels >= 0
    share = known.to(losses.dtype)
    if balanced:
        index = labels.clamp_min(0)
        counts = torch.zeros(classes, dtype=losses.dtype, device=losses.device)
        counts.index_add_(0, index, share)
        share = share / counts.clamp_min(1)[index]  # each class present weighs 1 in all
    return torch.where(known, losses, 0.0) @ share / share.sum().clamp_min(1)
