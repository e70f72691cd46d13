"""What only an accelerator can show: same numbers as a CPU's, in bf16, packed, compiled, resumed.

Without a GPU all of it is skipped, so CI never runs this file: run it on the machine that
trains, ``pytest tests/test_gpu.py -p no:xdist``, before the first long run there.
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_dist
import tiny
import torch
import torch.distributed as td
from torch import Tensor

from ssl_core import embed, feed, job, models, plugins, step, telemetry, train
from ssl_core.errors import HeadwaterError
from ssl_core.progress import Reporter
from ssl_core.reader import ShardReader
from ssl_core.types import Task

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
DINO = {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 2, "freeze": 0.0}
# swd draws its directions on the device.
OPTIONS = test_dist.OPTIONS | {"contrastive": {"hidden": 16, "out": 8}}
DEEP = tiny.VIT | {"depth": 3}


def forget() -> None:
    """Give back what this process' earlier runs left, with cuBLAS' workspace of each stream."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def cuda() -> torch.device:
    return torch.device("cuda", 0)


def build(name: str) -> Any:
    """A method around a small ViT, the same each time."""
    plugin = plugins.load("methods", name)
    torch.manual_seed(0)
    encoder = models.create("vit_tiny_patch16_224", {**test_dist.VIT, "global_pool": "avg"})
    return plugin.Method(encoder, plugin.Config(**OPTIONS[name]), Task(16, 4, 3))


def fed(method: Any, device: str) -> tuple[list[Tensor], dict[str, Any]]:
    """Views, and what else the method wants, on the device."""
    views = [v.to(device) for v in test_dist.data()][: sum(v.count for v in method.views)]
    given = test_dist.inputs_of(views)
    return views, {k: _moved(given[k], device) for k in getattr(method, "wants", ())}


def one_pass(method: Any, device: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the same weights on the same views."""
    method.to(device)
    views, inputs = fed(method, device)
    torch.manual_seed(3)
    loss, _ = method(views, 1, **inputs)
    loss.backward()
    return loss.item(), {k: p.grad for k, p in method.named_parameters() if p.grad is not None}


def _moved(value: Any, device: str) -> Any:
    return [x.to(device) for x in value] if isinstance(value, list) else value.to(device)


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_are_those_of_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, key, fixed in (
        (test_dist.mae_method, "random_mask", test_dist.fixed_mask),
        (test_dist._masks, "block_masks", test_dist.fixed_blocks),
        (test_dist._masks, "cell_masks", test_dist.fixed_cells),
    ):
        monkeypatch.setattr(module, key, fixed)  # these draw by the device's own generator
    expected, gradients = one_pass(build(name), "cpu")
    found, mine = one_pass(build(name), "cuda")
    assert found == pytest.approx(expected, rel=1e-4)
    assert mine.keys() == gradients.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(mine[key].cpu(), value, rtol=2e-3, atol=1e-5, msg=key)


# Their masks differ from image to image: where they lie has to be known before rows are picked.
WAITING = {"ibot", "dinov2"}


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - WAITING))
def test_no_method_waits_for_the_gpu_amid_a_step(name: str) -> None:
    method = build(name)
    one_pass(method, "cuda")
    views, inputs = fed(method, "cuda")
    try:
        torch.cuda.set_sync_debug_mode("error")
        method(views, 1, **inputs)[0].backward()
        method.after_step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def course(root: Path, steps: int = 4, **pretrain: Any) -> tuple[list[float], job.Run]:
    """Losses of the first steps of a run, through reader, augmentation and optimiser."""
    shards = root / "data/products/shards"
    paths = shards if shards.exists() else tiny.write(root).shards
    run = job.build(tiny.config(**pretrain), paths, root)
    run.method.train()
    run.telemetry.flops = 0.0
    read = run.reader.batches(run.cfg.pretrain.batch_size, 0, steps)
    with contextlib.closing(feed.stream(run, read, 0)) as batches:
        return [step.take(run, [batch], n)[0] for n, batch in enumerate(batches)], run


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_a_run_in_fp32_follows_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"simclr": tiny.SIZES, "dino": DINO}[method]
    there, run = course(tmp_path, method=method, options=options, compile="off")
    assert run.device.type == "cuda"
    monkeypatch.setattr(job, "device", lambda: torch.device("cpu"))
    here, _ = course(tmp_path, method=method, options=options)
    assert there == pytest.approx(here, rel=2e-3)


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("packing", ["off", "on"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_packing_and_compiling_change_the_loss_by_rounding_only(
    tmp_path: Path, precision: str, packing: str, compiled: str
) -> None:
    common = {"method": "dino", "options": DINO, "backbone_args": DEEP}
    plain, _ = course(tmp_path, **common, precision="fp32", packing="off", compile="off")
    torch._dynamo.reset()
    found, _ = course(tmp_path, **common, precision=precision, packing=packing, compile=compiled)
    # bf16 has 8 bits: DINO's logits are divided by a temperature of 0.1.
    assert found == pytest.approx(plain, rel=2e-3 if precision == "fp32" else 5e-2)


def test_views_of_both_places_are_the_same_to_a_grey_level(tmp_path: Path) -> None:
    made = []
    for place in ("device", "workers"):
        _, run = course(tmp_path, steps=1, augment=place)
        read = run.reader.batches(8, 0, 1)
        with contextlib.closing(feed.stream(run, read, 0)) as batches:
            made.append(feed.views(run, next(batches)[1], 0)[0])
    for ours, theirs in zip(*made, strict=True):
        assert ours.is_cuda
        assert theirs.is_cuda
        assert (ours - theirs).abs().max() < 0.02 / 0.2  # a grey level is 0.004, over a std of 0.2


def fit(root: Path, name: str, **pretrain: Any) -> dict[str, Tensor]:
    (work := root / name).mkdir(exist_ok=True)
    with Reporter("test") as report:
        method = train.fit(tiny.config(**pretrain), root / "data/products/shards", work, report)
    return {k: v.cpu() for k, v in method.state_dict().items()}


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path)
    settings = {"epochs": 1, "checkpoint_steps": 3, "compile": "off", "precision": "bf16"}
    whole = fit(tmp_path, "whole", **settings)
    with tiny.preempted(monkeypatch, at=5):
        fit(tmp_path, "stopped", **settings)
    again = fit(tmp_path, "stopped", **settings)
    for key, value in whole.items():  # some kernels add up in any order
        torch.testing.assert_close(again[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_telemetry_has_the_devices_times_memory_and_share_of_its_peak(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    fit(tmp_path, "work", compile="off", precision="bf16")
    found = telemetry.summary(tmp_path / "work" / telemetry.FILE)
    assert 0 < found["share/forward_backward"] < 1
    assert 0 < found["mfu"] < 1
    assert 0 < found["peak_bytes"] < torch.cuda.get_device_properties(0).total_memory


def test_a_batch_beyond_memory_is_a_clear_error(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    args = {"img_size": 16, "patch_size": 2, "embed_dim": 192, "depth": 8, "num_heads": 3}
    forget()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(HeadwaterError, match=r"batch_size 8192.*does not fit"):
            fit(tmp_path, "work", batch_size=8192, compile="off", backbone_args=args)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_recomputed_blocks_need_less_memory(tmp_path: Path) -> None:
    peaks = []
    args = {"img_size": 16, "patch_size": 2, "embed_dim": 192, "depth": 8, "num_heads": 3}
    for checkpointing in (False, True):
        forget()
        torch.cuda.reset_peak_memory_stats()
        more = {"activation_checkpointing": checkpointing, "backbone_args": args, "batch_size": 32}
        course(tmp_path, steps=2, compile="off", **more)
        peaks.append(telemetry.peak_memory(cuda()))
    assert peaks[1] < 0.7 * peaks[0]


def test_embeddings_are_those_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(tiny.write(tmp_path).shards, None, 16)
    torch.manual_seed(0)
    encoder = models.create("vit_tiny_patch16_224", tiny.VIT)
    colour = models.normalisation(reader.channels)
    there = embed.compute(embed.ready(encoder), reader, *colour)
    monkeypatch.setattr(embed, "device", lambda: torch.device("cpu"))
    here = embed.compute(embed.ready(encoder), reader, *colour)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (here, there))
    assert (a * b).sum(1).min() > 0.999


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_meet_over_nccl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    """One rank is all that one GPU can hold: the group, the wrapping and the numbers."""
    from ssl_core import dist

    alone, _ = course(tmp_path, compile="off")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    td.init_process_group("cpu:gloo,cuda:nccl", f"file://{tmp_path}/meet", rank=0, world_size=1)
    monkeypatch.setattr(dist, "active", td.is_initialized)
    try:
        found, _ = course(tmp_path, compile="off", parallel=parallel)
    finally:
        td.destroy_process_group()
    assert found == pytest.approx(alone, rel=1e-3)
