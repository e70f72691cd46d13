"""DINO's cross-entropy between views over prototypes (arXiv 2104.14294)."""

from __future__ import annotations

from torch import Tensor, einsum
from torch.nn import functional as F

from .. import dist
from ._common import check_temperature, full_precision, raised


def targets(teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """softmax((teacher - centre) / t), without gradient.

    Args:
        teacher: (G, B, K) logits of the G global views.
        centre: (K,) running mean of the teacher's logits.
        temperature: t > 0; small sharpens.

    Raises:
        ValueError: t <= 0, or shapes that do not fit.
    """
    check_temperature(temperature)
    if teacher.ndim != 3 or centre.shape != teacher.shape[-1:]:
        raise ValueError(
            f"shapes {tuple(teacher.shape)}, {tuple(centre.shape)} must be (G, B, K), (K,)"
        )
    with full_precision(teacher):
        return F.softmax((raised(teacher.detach()) - centre) / temperature, dim=-1)


def dino(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy over pairs of one global (teacher) and one other (student) view.

    Args:
        student: (V, B, K) logits; the first G views are the teacher's, in its order.
        target: (G, B, K) distributions of :func:`targets`; never gets gradient.
        temperature: student's t > 0.

    Raises:
        ValueError: t <= 0, shapes that do not fit, or no pair of different views.
    """
    check_temperature(temperature)
    if student.ndim != 3 or student.shape[1:] != target.shape[1:] or len(student) < len(target):
        raise ValueError(
            f"shapes {tuple(student.shape)}, {tuple(target.shape)} must be (V, B, K), (G, B, K)"
        )
    if len(student) < 2:
        raise ValueError(f"{len(student)} view must be at least 2: a view is not its own target")
    with full_precision(student):
        log_p = F.log_softmax(raised(student) / temperature, dim=-1)
        cross = -einsum("gbk,vbk->gv", target.detach(), log_p)
        pairs = cross.numel() - len(target)
        return (cross.sum() - cross.diagonal().sum()) / (pairs * student.shape[1])


def batch_centre(teacher: Tensor) -> Tensor:
    """Mean logits over views, images and ranks: (G, B, K) -> (K,), without gradient."""
    with full_precision(teacher):
        return dist.mean(raised(teacher.detach()).mean((0, 1)))


def entropy(p: Tensor) -> Tensor:
    """Mean entropy in nats of distributions along the last dimension."""
    return -(p * p.clamp_min(1e-12).log()).sum(-1).mean()


def warm_temperature(step: int, warm_steps: int, start: float, end: float) -> float:
    """Teacher temperature: linear from ``start`` to ``end`` (both met) in ``warm_steps``."""
    share = 1.0 if warm_steps <= 1 else min(1.0, step / (warm_steps - 1))
    return start + (end - start) * share
