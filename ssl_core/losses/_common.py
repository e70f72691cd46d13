"""What every loss checks and how it leaves autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .. import dist


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: exp(1/temperature) overflows half precision for small temperatures."""
    return torch.autocast(x.device.type, enabled=False)


def raised(x: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def weighted_mean(losses: Tensor, weights: Tensor | None, views: int = 1) -> Tensor:
    """Mean of per-anchor losses (views*N,), view by view, with each image's weight.

    ``weights`` (B,) are this rank's; they are gathered over ranks.
    """
    if weights is None:
        return losses.mean()
    return (losses * dist.gather(weights.to(losses.dtype)).repeat(views)).mean()


def holds(condition: Tensor | bool) -> bool:
    """Whether it is true. On a GPU it is taken for true: asking would drain its queue amid a step.

    Most of what is wrong there ends in a loss that is not finite, which no step takes, or in the
    GPU's own complaint (a label beyond the classes).
    """
    return (isinstance(condition, Tensor) and condition.is_cuda) or bool(condition)


def check_temperature(*values: float | Tensor) -> None:
    """Raise ValueError unless all are positive."""
    for value in values:
        if not holds(value > 0):
            raise ValueError(f"temperature {value} must be positive")


def check_shapes(*tensors: Tensor) -> None:
    """Raise ValueError unless all have the same shape."""
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) != 1:
        raise ValueError(f"shapes {sorted(shapes)} must be equal")


def difference(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Prediction less target, (B, L, P) each; ``target`` gets no gradient.

    Raises:
        ValueError: unequal shapes, or a mask that is not (B, L).
    """
    check_shapes(pred, target)
    if mask.shape != pred.shape[:2]:
        raise ValueError(f"mask {tuple(mask.shape)} must be {tuple(pred.shape[:2])}")
    return raised(pred) - raised(target.detach())


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, L) where ``mask`` (B, L) is true.

    Raises:
        ValueError: it is true nowhere.
    """
    count = mask.sum()
    if not holds(count > 0):
        raise ValueError("mask must hide at least one patch")
    return (error * mask).sum() / count
