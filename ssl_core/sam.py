"""Sharpness-aware steps (SAM, arXiv 2010.01412), as rwSAM uses them (arXiv 2110.05025)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def at_the_worst(parameters: list[nn.Parameter], radius: float) -> Iterator[None]:
    """Inside, parameters stand ``radius`` further along their gradient; afterwards exactly back.

    A gradient that is not finite leaves them not finite inside: the loss there then tells.
    """
    live: list[Tensor] = [p for p in parameters if p.grad is not None]
    saved = [p.detach().clone() for p in live]
    grads = [p.grad for p in live if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    with torch.no_grad():
        for place, grad in zip(live, grads, strict=True):
            place.add_(grad * (radius / (norm + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(live, saved)


@contextlib.contextmanager
def still_buffers(module: nn.Module) -> Iterator[None]:
    """Batch-norm statistics and other buffers are the same after as before."""
    saved: list[tuple[Tensor, Tensor]] = [(b, b.clone()) for b in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
