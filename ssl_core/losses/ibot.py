"""Self-distillation of masked patches (iBOT, arXiv 2111.07832)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ._common import check_shapes, check_temperature, full_precision, raised


def ibot(student: Tensor, target: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Cross-entropy on masked patches: mean over images of each image's mean.

    Args:
        student: (M, K) logits of the masked patches, in the order of ``tokens[mask]``.
        target: (M, K) distributions; never gets gradient.
        mask: (N, L) bool with M true entries. An image without any counts as 0.
        temperature: student's t > 0.

    Raises:
        ValueError: t <= 0, or shapes that do not fit.
    """
    check_temperature(temperature)
    check_shapes(student, target)
    if student.ndim != 2 or mask.ndim != 2:
        raise ValueError(
            f"shapes {tuple(student.shape)}, {tuple(mask.shape)} must be (M, K), (N, L)"
        )
    with full_precision(student):
        log_p = F.log_softmax(raised(student) / temperature, dim=-1)
        cross = -(target.detach() * log_p).sum(-1)  # (M, K) -> (M,)
        share = mask.to(cross.dtype) / mask.sum(1, keepdim=True).clamp_min(1)  # (N, L)
        weight = share[mask]  # (N, L) -> (M,)
        if len(weight) != len(cross):
            raise ValueError(f"mask hides {len(weight)} patches, but {len(cross)} are given")
        return (cross * weight).sum() / len(mask)
