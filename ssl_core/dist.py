"""Process groups: rank, reductions, and the one gather that keeps gradients."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor


def active() -> bool:
    """True inside an initialised process group of more than one rank."""
    return td.is_available() and td.is_initialized() and td.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 without a group."""
    return td.get_rank() if active() else 0


def world() -> int:
    """Number of ranks; 1 without a group."""
    return td.get_world_size() if active() else 1


def setup(device: torch.device) -> None:
    """Join the group torchrun describes in the environment; does nothing for one process."""
    if device.type == "cuda":  # else events, barriers and compiled kernels are of GPU 0
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not td.is_initialized():
        # Gloo in both cases: counters and checkpoints are agreed upon on the host.
        td.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def teardown() -> None:
    """Leave the group if there is one."""
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


def barrier() -> None:
    """Wait until all ranks are here."""
    if active():
        td.barrier()


def largest(value: int) -> int:
    """The largest ``value`` of all ranks."""
    box = torch.tensor(value)
    if active():
        td.all_reduce(box, td.ReduceOp.MAX)
    return int(box)


def of_first(value: int) -> int:
    """The ``value`` of rank 0."""
    box = torch.tensor(value)
    if active():
        td.broadcast(box, 0)
    return int(box)


def is_sharded(x: Any) -> bool:
    """Whether ``x`` is a DTensor (whose module takes seconds to import)."""
    return hasattr(x, "full_tensor")


def whole(x: Tensor) -> Tensor:
    """``x``, gathered if it is sharded over ranks: then all of them must call this."""
    full: Tensor = x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined, operator]
    return full


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums every rank's gradient for this rank's rows.

    DDP then averages parameter gradients over ranks. A loss that is the mean over the global
    batch, computed on every rank, therefore gets exactly the gradient of one process with the
    whole batch (tests: 1 rank x 2B = 2 ranks x B).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        td.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # (B, ...) -> (world*B, ...)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        td.all_reduce(grad)
        return grad.chunk(world())[rank()]


def gather(x: Tensor) -> Tensor:
    """Concatenate ``x`` over ranks along dim 0, with gradient: (B, ...) -> (world*B, ...)."""
    out: Tensor = _Gather.apply(x) if active() else x  # type: ignore[no-untyped-call]
    return out


def mean(x: Tensor) -> Tensor:
    """Mean of ``x`` over ranks, without gradient (centres, statistics)."""
    x = x.detach().clone()
    if active():
        td.all_reduce(x)
        x /= world()
    return x
