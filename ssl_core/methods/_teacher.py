"""Momentum teachers."""

from __future__ import annotations

import copy
import math
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A copy that shares no storage and takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


def first_momentum(chosen: float | None, steps: int, memory: float = 0.1) -> float:
    """Where a teacher's momentum starts: ``chosen``, else by the length of training.

    Then the teacher averages over a share ``memory`` of the steps: 0.996 is meant for thousands,
    and in a run of 150 it would leave the teacher where it was initialised (LOG.md).
    """
    if chosen is not None:
        return chosen
    return min(max(1 - 1 / (memory * max(steps, 1)), 0.9), 0.996)


def momentum(step: int, steps: int, start: float | None, memory: float = 0.1) -> float:
    """Cosine from ``start`` (None: by ``steps``) at step 0 to 1 at ``steps`` (arXiv 2006.07733)."""
    start = first_momentum(start, steps, memory)
    return 1 - (1 - start) * (math.cos(math.pi * min(step / steps, 1.0)) + 1) / 2


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- m * teacher + (1 - m) * student, parameters only.

    Batch-norm statistics are not averaged: the teacher keeps its own (it sees batches too).
    """
    mine: list[Tensor] = list(teacher.parameters())
    others: list[Tensor] = list(student.parameters())
    if len(mine) != len(others):
        raise ValueError(f"{len(mine)} and {len(others)} parameters must be as many")
    torch._foreach_lerp_(mine, others, 1 - momentum)  # one call: on a GPU few kernels


def quiet(teacher: nn.Module, training: bool) -> None:
    """No dropout or stochastic depth in the teacher; batch norm follows the student's mode."""
    teacher.eval()
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(training)


class Taught(nn.Module):
    """A method with a momentum ``teacher``."""

    teacher: nn.Module

    def train(self, mode: bool = True) -> Self:
        """As for every module, but the teacher stays free of dropout."""
        super().train(mode)
        quiet(self.teacher, mode)
        return self
