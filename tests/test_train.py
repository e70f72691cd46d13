"""The training loop: exact resume after kill -9, no NaN in weights, ranks agree, safe files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from conftest import headwater

from ssl_core import checkpoints, guard, job, models, optim, sam, shards, step, train
from ssl_core.artifacts import sha256_file, write_json
from ssl_core.config import Before, Config, Paths, Sam, load
from ssl_core.errors import HeadwaterError
from ssl_core.progress import Reporter
from ssl_core.stages import pretrain
from ssl_core.types import View

UPSTREAM = ("ingest", "validate", "seed_embed", "curate", "shard")


@pytest.fixture
def sharded(project: Path) -> tuple[Config, Paths]:
    import importlib

    cfg, paths = load(), Paths()
    for name in UPSTREAM:
        importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)
    return cfg, paths


def kill_after_lines(project: Path, lines: int) -> bool:
    """Start pretraining, kill -9 its process once the log has so many lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_core", "pretrain"],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        logs = list(project.glob("runs/pretrain/*/log.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) >= lines:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    return process.wait() == -signal.SIGKILL


def test_resume_after_kill_is_exact(sharded: tuple[Config, Paths], project: Path) -> None:
    headwater("pretrain", cwd=project)
    product = project / "data/products/pretrain"
    log = (product / "log.jsonl").read_bytes()
    weights = sha256_file(product / "encoder.safetensors")
    steps = len(log.splitlines())
    assert steps >= 8
    (product / "log.jsonl").unlink()
    killed = [kill_after_lines(project, n) for n in (3, 6)]
    assert all(killed), "the run ended before it could be killed"
    headwater("pretrain", cwd=project)
    assert (product / "log.jsonl").read_bytes() == log
    assert sha256_file(product / "encoder.safetensors") == weights


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The loss of these steps is NaN."""
    forward = step.forward

    def poisoned(run: job.Run, part: step.Part, number: int, weighted: bool = False) -> Any:
        loss, metrics = forward(run, part, number, weighted)
        return (loss * math.nan if number in steps else loss), metrics

    monkeypatch.setattr(step, "forward", poisoned)


def fit(cfg: Config, paths: Paths, work: Path) -> torch.nn.Module:
    work.mkdir(exist_ok=True)
    with Reporter("test") as report:
        return train.fit(cfg, paths.shards, work, report)


def changed(cfg: Config, **pretrain: Any) -> Config:
    return cfg.model_copy(update={"pretrain": cfg.pretrain.model_copy(update=pretrain)})


def log(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def test_nan_never_reaches_the_weights(
    sharded: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, paths = sharded
    poison(monkeypatch, {1, 4, 5, 6})
    work = tmp_path / "work"
    with pytest.raises(HeadwaterError, match=r"lower pretrain\.lr.*bad_steps"):
        fit(changed(cfg, rollbacks=0), paths, work)
    bad = [json.loads(line) for line in (work / "bad_steps.jsonl").read_text().splitlines()]
    assert [b["step"] for b in bad] == [1, 4, 5, 6]
    assert len(bad[0]["samples"]) == cfg.pretrain.batch_size
    found = checkpoints.latest(work)
    assert found is not None
    tensors = torch.load(found.data, weights_only=True).values()
    assert all(torch.isfinite(t).all() for t in tensors)


def test_a_step_beyond_the_gpus_memory_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    monkeypatch.setattr(step, "take", take)
    with pytest.raises(HeadwaterError, match=r"batch_size 8.*CUDA out of memory\).*accumulate"):
        fit(tiny.config(), tiny.write(tmp_path), tmp_path / "work")


def test_a_bad_batch_leaves_batch_norm_alone(
    sharded: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, paths = sharded
    given = step.parts

    def poisoned(run: job.Run, batches: list[step.Batch], number: int) -> list[step.Part]:
        parts = given(run, batches, number)
        if number == 2:
            parts[0].views = [v * math.nan for v in parts[0].views]
        return parts

    monkeypatch.setattr(step, "parts", poisoned)
    method = fit(cfg, paths, tmp_path / "work")
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms
    assert all(m.running_mean.isfinite().all() for m in norms)
    assert int(norms[0].num_batches_tracked) == len(log(tmp_path / "work")) - 1


def test_trouble_goes_back_once_with_half_the_rate_and_resumes_so(
    sharded: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, paths = sharded
    plain, work = tmp_path / "plain", tmp_path / "work"
    fit(cfg, paths, plain)
    with monkeypatch.context() as patch:
        poison(patch, {5, 6, 7})
        with pytest.raises(HeadwaterError, match="no finite gradient"):  # again after going back
            fit(cfg, paths, work)
    (back,) = [json.loads(x) for x in (work / "rollbacks.jsonl").read_text().splitlines()]
    assert (back["step"], back["to"]) == (7, 4)
    fit(cfg, paths, work)  # the cause is gone: goes on from step 4
    rates = [(a["lr"], b["lr"]) for a, b in zip(log(plain), log(work), strict=True)]
    assert all(a == b for a, b in rates[:4])
    assert all(a / 2 == b for a, b in rates[4:])


def test_collapse_is_noticed_and_names_the_knob(
    sharded: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, paths = sharded
    small = changed(cfg, rollbacks=0, check_steps=1, epochs=12)
    run = job.build(small, paths.shards, tmp_path)
    monkeypatch.setattr(train, "build", lambda *_: run)
    with torch.no_grad():  # constant features
        run.method.encoder.model.norm.weight.zero_()
    run.method.encoder.model.norm.weight.requires_grad_(False)
    with pytest.raises(HeadwaterError, match=r"has collapsed: features differ by"):
        fit(small, paths, tmp_path / "work")
    assert len(log(tmp_path)) == 3  # three looks


def test_guard_reads_the_signs() -> None:
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 16, generator=g)
    thin = torch.randn(64, 1, generator=g) * torch.ones(16) + 1e-6 * wide
    flat = 5 + 1e-5 * wide
    relative, rank = guard.spread(wide)
    assert relative == pytest.approx(1, abs=0.02)
    assert 14 < rank <= 16
    assert guard.spread(thin)[1] < 1.1
    assert guard.spread(flat)[0] < guard.FLAT

    def looks(features: torch.Tensor, step: int, loss: float, **metrics: float) -> None:
        watch = guard.Guard(100, "raise the knob")
        for _ in range(3):
            watch.look(step, features, loss, metrics)

    looks(wide, 50, 2.0, chance=4.0)
    looks(wide, 10, 4.0, chance=4.0)  # too early to tell
    for features in (thin, flat):
        with pytest.raises(guard.Trouble, match=r"collapsed.*raise the knob"):
            looks(features, 0, 1.0)
    with pytest.raises(guard.Trouble, match="by chance"):
        looks(wide, 50, 4.0004, chance=4.0)
    with pytest.raises(guard.Trouble, match="one prototype"):
        looks(wide, 50, 1.0, chance=4.0, entropy=1e-4)
    watch = guard.Guard(100, "")
    watch.look(50, wide, 4.0, {"chance": 4.0})
    again = guard.Guard(100, "")
    again.load(watch.state())
    assert not again.healthy
    again.look(51, wide, 1.0, {"chance": 4.0})
    assert again.healthy


def test_sam_is_the_closed_form_on_a_quadratic() -> None:
    a = torch.diag(torch.tensor([1.0, 3.0]))
    theta = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    first = theta.detach().clone()

    def gradient() -> torch.Tensor:
        theta.grad = None
        (0.5 * theta @ a @ theta).backward()
        assert theta.grad is not None
        return theta.grad

    pull = gradient().clone()
    with sam.at_the_worst([theta], 0.1):
        torch.testing.assert_close(gradient(), a @ (first + 0.1 * pull / pull.norm()))
    assert torch.equal(theta, first)
    norm = torch.nn.BatchNorm1d(2)
    with sam.still_buffers(norm):
        norm(torch.randn(4, 2))
    assert torch.equal(norm.running_mean, torch.zeros(2))


def test_rwsam_trains_and_differs_from_sam_and_plain(
    sharded: tuple[Config, Paths], tmp_path: Path
) -> None:
    cfg, paths = sharded
    few = changed(cfg, epochs=2)
    losses = {}
    for name, options in {
        "plain": {},
        "no radius": {"radius": 0.0, "alpha": 1.0},
        "sam": {"radius": 0.1, "alpha": 0.0},
        "rwsam": {"radius": 0.1, "alpha": 1.0},
    }.items():
        own = changed(few, sam=Sam(**options))
        work = tmp_path / name
        work.mkdir()
        with Reporter("test") as report:
            pretrain.fit(own, paths.shards, work, report)
        losses[name] = [row["grad_norm"] for row in log(work)]
    assert losses["plain"] == losses["no radius"]
    assert losses["plain"] != losses["sam"] != losses["rwsam"]


def test_before_hands_its_encoder_over(sharded: tuple[Config, Paths], tmp_path: Path) -> None:
    cfg, paths = sharded
    chain = changed(cfg, epochs=1, before=Before(method="mae", epochs=1))
    work = tmp_path / "work"
    work.mkdir()
    with Reporter("test") as report:
        pretrain.fit(chain, paths.shards, work, report)
    made = safetensors.torch.load_file(work / "before" / "encoder.safetensors")
    (first, *_) = checkpoints.notes(work / "before")
    start = torch.load(first.data, weights_only=True)
    run = job.build(changed(cfg, init=str(work / "before")), paths.shards, tmp_path)
    own = run.method.encoder.model.state_dict()
    assert set(own) == set(made)  # the whole encoder, no decoder
    assert all(torch.equal(own[k], made[k]) for k in made)
    assert any(not torch.equal(start[f"method.encoder.model.{k}"], made[k]) for k in made)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("lars", None)])
def test_optimisers(
    sharded: tuple[Config, Paths], tmp_path: Path, name: str, kind: type | None
) -> None:
    cfg, paths = sharded
    run = job.build(
        changed(cfg, options={"optimizer": name, "weight_decay": 0.1, "weight_decay_end": 0.3}),
        paths.shards,
        tmp_path,
    )
    assert type(run.optimizer).__name__.lower() == name
    assert kind is None or isinstance(run.optimizer, kind)
    decays = []
    for number in (0, run.steps // 2, run.steps):
        step.set_rates(run, number)
        decays.append([g["weight_decay"] for g in run.optimizer.param_groups])
    assert decays[0] == [0.1, 0.0]
    assert decays[-1] == [pytest.approx(0.3), 0.0]
    assert 0.15 < decays[1][0] < 0.25


def test_two_ranks_train_and_export(sharded: tuple[Config, Paths], project: Path) -> None:
    headwater(
        "pretrain",
        "-s",
        "pretrain.processes=2",
        "-s",
        "pretrain.epochs=1",
        "-s",
        "pretrain.batch_size=8",
        cwd=project,
    )
    product = project / "data/products/pretrain"
    rows = [json.loads(line) for line in (product / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(r["loss"]) for r in rows)
    import timm

    meta = json.loads((product / "encoder.json").read_text())
    model = timm.create_model(
        meta["model_name"],
        num_classes=0,
        **meta["args"],
        checkpoint_path=str(product / "encoder.safetensors"),
    )
    assert model(torch.zeros(1, 3, 32, 32)).shape[-1] == 48


def test_schedule() -> None:
    rates = [optim.learning_rate(s, 100, 1.0, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9] == pytest.approx(1.0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] < 1e-3


def test_auto_precision_avoids_bf16_where_maps_shrink_to_a_point() -> None:
    resnet = models.create("resnet10t")
    vit = models.create(
        "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1}
    )
    assert job._gains(resnet, [View(32, (0.2, 1.0))])
    assert not job._gains(resnet, [View(32, (0.2, 1.0)), View(16, (0.1, 0.4), count=4)])
    assert not job._gains(vit, [View(32, (0.2, 1.0))])


def test_norms_and_biases_are_not_decayed() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, plain = optim.parameter_groups(module, 0.1)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_an_image_that_cannot_be_decoded_is_listed_with_the_product(tmp_path: Path) -> None:
    found = tiny.images(75)
    found[3] = dataclasses.replace(found[3], image=found[3].image[:40])
    paths = Paths(tmp_path)
    paths.shards.mkdir(parents=True)
    shards.write(paths.shards, found, 2**15, 16)
    write_json(paths.shards / "lineage.json", {"stage": "shard"})
    counts = pretrain.run(tiny.config(epochs=2), paths)
    assert counts["rejected"] == 1
    (line,) = (paths.pretrain / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == found[3].key
