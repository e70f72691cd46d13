"""How a method is laid out over the ranks: DDP copies it, FSDP2 shards it."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as td
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import dist, models
from .errors import HeadwaterError


def wrap(method: nn.Module, parallel: str, device: torch.device) -> nn.Module:
    """What to call instead of ``method`` so that gradients are means over ranks.

    With ``fsdp`` its parameters are DTensors afterwards: build the optimiser later.
    """
    if not dist.active():
        return method
    if parallel == "ddp":
        return DistributedDataParallel(method)
    _shard(method, device)
    return method


def _shard(method: nn.Module, device: torch.device) -> None:
    """FSDP2 (arXiv 2304.11277): each transformer block is gathered when its turn comes.

    A teacher is sharded as its student is, so that following it needs no communication.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here: these take seconds
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.world(),))
    stacks = [m for name, m in method.named_modules() if name.rpartition(".")[2] == "blocks"]
    for block in [block for stack in stacks for block in stack.children()]:
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    method.register_forward_pre_hook(lambda module, _: _share_buffers(module))


@torch.no_grad()
def _share_buffers(module: nn.Module) -> None:
    """Those of rank 0 for all, as DDP does it: batch norm would differ by rank."""
    for buffer in module.buffers():
        td.broadcast(buffer, 0)


def require_fit(parallel: str, optimizer: str, sam: float, vit: bool) -> None:
    """Refuse what FSDP is not tested with.

    Raises:
        HeadwaterError: another optimiser than AdamW, SAM, or an encoder that is no ViT.
    """
    wrong = {
        f"optimizer {optimizer}": optimizer != "adamw",  # LARS takes norms of whole tensors
        f"pretrain.sam.radius {sam}": sam > 0,
        "a backbone that is no ViT": not vit,  # channels last is lost in shards
    }
    for value in [v for v, is_wrong in wrong.items() if is_wrong and parallel == "fsdp"]:
        rule = "does not go with pretrain.parallel: fsdp"
        raise HeadwaterError(value, rule, "set pretrain.parallel: ddp")


def unsynchronised(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within, DDP leaves gradients of each rank alone; FSDP means them every time."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def gathered(encoder: models.Encoder) -> models.Encoder:
    """The whole encoder; if it is sharded all ranks must call this."""
    state = encoder.model.state_dict()
    if not any(dist.is_sharded(v) for v in state.values()):
        return encoder
    plain = models.create(encoder.name, encoder.args)
    plain.model.load_state_dict({k: dist.whole(v) for k, v in state.items()})
    return plain
