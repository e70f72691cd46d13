"""1 rank x 2B equals 2 ranks x B: losses, gradients, centres, over gloo in real processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core import dist, models, plugins
from ssl_core.losses import dino
from ssl_core.losses.koleo import koleo
from ssl_core.losses.nt_xent import nt_xent
from ssl_core.losses.sinkhorn import sinkhorn
from ssl_core.methods import _masks
from ssl_core.methods import mae as mae_method
from ssl_core.types import Task

WORLD, BATCH = 2, 4  # images per rank
CLASSES = 3
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 16, "out": 8},
    "moco_v3": {"hidden": 16, "out": 8},
    "byol": {"hidden": 16, "out": 8},
    "simsiam": {"hidden": 16, "out": 8, "bottleneck": 4},
    "vicreg": {"hidden": 16, "out": 8},
    "rince": {"hidden": 16, "out": 8},
    "contrastive": {"hidden": 16, "out": 8, "loss": "swd"},
    "clip_min": {"out": 8},
    "dino": {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 1, "freeze": 0.5},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "ibot": {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 1, "tied": False},
    "dinov2": {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 1, "tied": False},
    "simmim": {"mask_patch": 8},
    "cl_mim": {"hidden": 16, "out": 8, "mask_patch": 8, "weight": 0.5},
    "msn": {"prototypes": 12, "hidden": 16, "out": 8, "locals_": 1},
    "pmsn": {"prototypes": 12, "hidden": 16, "out": 8, "locals_": 1},
    "supcon": {"hidden": 16, "out": 8},
    "supcon_ce": {"hidden": 16, "out": 8},
    "supervised": {"label_smoothing": 0.1},
    "vicregl": {"hidden": 16, "out": 8, "local_hidden": 16, "local_out": 8, "locals_": 1},
}


def data() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    sides = (16, 16, 8)
    return [torch.randn(WORLD * BATCH, 3, s, s, generator=g) for s in sides]


def share(x: Tensor) -> Tensor:
    """This rank's rows."""
    return x.chunk(dist.world())[dist.rank()]


def loss_case() -> dict[str, Tensor]:
    """The bare losses: values, and gradients of a shared weight under DDP's averaging."""
    features = data()[2].flatten(1)
    torch.manual_seed(0)
    weight = torch.randn(features.shape[1], 6, requires_grad=True)
    a, b = share(features) @ weight, share(features.roll(1, dims=1)) @ weight
    loss = nt_xent(a, b, 0.3) + koleo(a)
    loss.backward()
    assert weight.grad is not None
    teacher = torch.stack([a, b])
    return {
        "loss": loss.detach(),
        "grad": dist.mean(weight.grad),
        "centre": dino.batch_centre(teacher),
        "gathered": dist.gather(a).detach(),
        "sinkhorn": uneven_sinkhorn(dist.gather(a).detach()),
    }


def uneven_sinkhorn(logits: Tensor) -> Tensor:
    """Balanced with one sample on the first rank and the others on the last."""
    cuts = [0, *[1] * (dist.world() - 1), len(logits)]
    own = slice(cuts[dist.rank()], cuts[dist.rank() + 1])
    whole = torch.zeros_like(logits)
    whole[own] = sinkhorn(logits[own], 0.3)
    return dist.mean(whole) * dist.world()


def fixed_blocks(counts: Tensor, side: int, smallest: float) -> Tensor:
    return torch.tensor([True, False, False, True], device=counts.device).expand(len(counts), 4)


def fixed_cells(batch: int, cells: int, unit: int, hidden: int, device: torch.device) -> Tensor:
    return (torch.arange(4, device=device) < hidden).expand(batch, 4)


def fixed_mask(batch: int, side: int, kept: int, device: torch.device) -> tuple[Tensor, Tensor]:
    keep = torch.arange(kept, device=device).expand(batch, kept)
    hidden = torch.ones(batch, side * side, dtype=torch.bool, device=device)
    return keep, hidden.scatter(1, keep, False)


def inputs_of(views: list[Tensor]) -> dict[str, Any]:
    """What a method may want beside its views."""
    g = torch.Generator().manual_seed(1)
    boxes = [torch.rand(WORLD * BATCH, 5, generator=g).mul_(0.5) for _ in views]
    weights = torch.rand(WORLD * BATCH, generator=g)
    return {
        "labels": share(torch.tensor([0, -1, 2, 0, 1, -1, -1, -1])),  # unevenly known
        "boxes": [share(b) for b in boxes],
        "weights": share(weights / weights.mean()),
    }


def method_case(name: str) -> dict[str, Tensor]:
    """Two steps of a whole method under DDP (its usual settings: no unused parameters)."""
    torch.manual_seed(dist.rank())  # DDP must send rank 0's weights to all
    plugin = plugins.load("methods", name)
    encoder = models.create("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"})
    method = plugin.Method(encoder, plugin.Config(**OPTIONS[name]), Task(16, 4, CLASSES))
    for module in method.modules():  # batch statistics need SyncBatchNorm, which needs a GPU
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    mae_method.random_mask = fixed_mask
    _masks.block_masks, _masks.cell_masks = fixed_blocks, fixed_cells
    model = DistributedDataParallel(method) if dist.active() else method
    views = [share(v) for v in data()][: sum(v.count for v in method.views)]
    inputs = {name: inputs_of(views)[name] for name in getattr(method, "wants", ())}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        loss, _ = model(views, step, **inputs)
        loss.backward()
        grads = {f"grad {n}": p.grad for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_step(step)
    return {"loss": dist.mean(loss), **grads, **method.state_dict()}


def everything() -> dict[str, dict[str, Tensor]]:
    torch.set_num_threads(1)
    return {"losses": loss_case(), **{name: method_case(name) for name in OPTIONS}}


def worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    td.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save(everything(), f"{folder}/{rank}.pt")
    td.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Results of one process, then of each rank."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (str(folder),), WORLD)
    ranks = [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(WORLD)]
    threads, mask = torch.get_num_threads(), mae_method.random_mask
    blocks, cells = _masks.block_masks, _masks.cell_masks
    try:
        alone = everything()
    finally:
        torch.set_num_threads(threads)
        mae_method.random_mask = mask
        _masks.block_masks, _masks.cell_masks = blocks, cells
    return [alone, *ranks]


@pytest.mark.parametrize("case", ["losses", *OPTIONS])
def test_two_ranks_equal_one(found: list[dict[str, dict[str, Tensor]]], case: str) -> None:
    alone, *ranks = [f[case] for f in found]
    for rank in ranks:
        assert rank.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(
                rank[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{case} {k}: {m}"
            )


def test_without_a_group_nothing_is_needed() -> None:
    x = torch.randn(3, requires_grad=True)
    assert dist.gather(x) is x
    assert (dist.rank(), dist.world(), dist.active()) == (0, 1, False)
    mean = dist.mean(x)
    assert torch.equal(mean, x.detach())
    assert not mean.requires_grad
