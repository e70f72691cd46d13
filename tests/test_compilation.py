"""Compiled blocks: the same names, numbers and resume; what cannot work is said at the start."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ssl_core import compilation, job, models, plugins, step, train
from ssl_core.errors import HeadwaterError
from ssl_core.progress import Reporter
from ssl_core.types import Task

# torch silences this one while it traces, but pytest has turned it into an error before.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

CPU = torch.device("cpu")
DEEP = tiny.VIT | {"depth": 3}
DINO = {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 1}
MAE = {"decoder_dim": 16, "decoder_depth": 3, "decoder_heads": 2}


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """A backend that captures graphs, with their gradients, and needs no compiler."""
    torch._dynamo.reset()
    found = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation, "BACKEND", found)
    return found


def build(name: str, options: dict[str, Any], backbone: str = "vit_tiny_patch16_224") -> nn.Module:
    torch.manual_seed(0)
    plugin = plugins.load("methods", name)
    encoder = models.create(backbone, DEEP if backbone.startswith("vit") else {})
    method: nn.Module = plugin.Method(encoder, plugin.Config(**options), Task(16, 10))
    return method


def loss_and_gradients(method: Any) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    views = [torch.randn(4, 3, view.size, view.size) for view in method.views]
    torch.manual_seed(2)
    loss, _ = method(views, 5)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "options", "backbone", "packing"),
    [
        ("dino", DINO, "vit_tiny_patch16_224", False),
        ("dino", DINO, "vit_tiny_patch16_224", True),
        ("mae", MAE, "vit_tiny_patch16_224", False),
        ("simclr", tiny.SIZES, "resnet10t", False),
    ],
)
def test_compiled_blocks_compute_the_same_under_the_same_names(
    counter: CompileCounterWithBackend,
    name: str,
    options: dict[str, Any],
    backbone: str,
    packing: bool,
) -> None:
    plain = build(name, options, backbone)
    fast = copy.deepcopy(plain)
    plain.encoder.packing = fast.encoder.packing = packing  # type: ignore[union-attr]
    compilation.apply(fast, CPU)
    probe = counter.frame_count
    assert list(fast.state_dict()) == list(plain.state_dict())
    expected, gradients = loss_and_gradients(plain)
    found, mine = loss_and_gradients(fast)
    assert counter.frame_count > probe  # it did run compiled
    assert found == pytest.approx(expected, rel=1e-5)
    assert mine.keys() == gradients.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-3, atol=1e-5)


def test_blocks_of_one_kind_share_what_is_compiled(counter: CompileCounterWithBackend) -> None:
    method = build("simclr", tiny.SIZES)
    compilation.apply(method, CPU)
    assert len(compilation.parts(method)) == DEEP["depth"] - 1
    probe = counter.frame_count
    loss_and_gradients(method)
    assert counter.frame_count == probe + 1


def test_a_compiled_run_stops_resumes_and_exports_as_any_other(
    counter: CompileCounterWithBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tiny.write(tmp_path)
    cfg = tiny.config(compile="on", backbone_args=DEEP, epochs=1, checkpoint_steps=3)

    def fit(name: str) -> nn.Module:
        (work := tmp_path / name).mkdir(exist_ok=True)
        with Reporter("test") as report:
            method = train.fit(cfg, paths.shards, work, report)
            train.export(method, cfg, work)
        return method

    whole = fit("whole").state_dict()
    with tiny.preempted(monkeypatch, at=5):
        fit("cut")
    again = fit("cut").state_dict()
    assert all(torch.equal(again[k], v) for k, v in whole.items())
    assert counter.frame_count > 0
    with safe_open(tmp_path / "cut/encoder.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(models.create("vit_tiny_patch16_224", DEEP).model.state_dict())


def test_operations_are_counted_as_without_compiling(
    counter: CompileCounterWithBackend, tmp_path: Path
) -> None:
    paths = tiny.write(tmp_path)
    counts = []
    for choice in ("off", "on"):
        run = job.build(tiny.config(compile=choice, backbone_args=DEEP), paths.shards, tmp_path)
        batches = list(run.reader.batches(8, 0, 1))
        parts = step.parts(run, batches, 0)
        step.gradients(run, parts, 0)  # compiles
        frames = counter.frame_count
        counts.append(step.flops(run, parts, 0))
        assert counter.frame_count == frames
    assert counts[0] == counts[1] > 0
    assert frames > 1


def test_no_compiler_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    paths = tiny.write(tmp_path)
    with pytest.raises(HeadwaterError, match=r"no compiler that works.*pretrain.compile: off"):
        job.build(tiny.config(compile="on"), paths.shards, tmp_path)


def test_what_is_compiled_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr("torch.utils._triton.has_triton", lambda there=there: there)
        assert compilation.wanted("auto", "ddp", torch.device("cuda"), compilation.PAYS) is there
        assert not compilation.wanted("auto", "ddp", torch.device("cuda"), compilation.PAYS - 1)
        assert not compilation.wanted("auto", "ddp", CPU, compilation.PAYS)
    assert not compilation.wanted("off", "ddp", torch.device("cuda"), compilation.PAYS)
    assert compilation.wanted("on", "ddp", CPU, 1)
    with pytest.raises(HeadwaterError, match=r"set pretrain.compile: off"):
        compilation.wanted("on", "fsdp", CPU, 1)
