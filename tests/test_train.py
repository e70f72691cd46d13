"""The training loop: exact resume after kill -9, no NaN in weights, ranks agree, safe files."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import headwater

from ssl_core import checkpoints, train
from ssl_core.artifacts import sha256_file
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.progress import Reporter

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


def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"w": torch.full((4,), float(step))})
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-0000002.pt", "step-0000003.pt"]
    path = tmp_path / "step-0000003.pt"
    path.write_bytes(path.read_bytes()[:-7])
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found[0] == 2
    assert torch.equal(found[1]["w"], torch.full((4,), 2.0))


def test_nan_never_reaches_the_weights(
    sharded: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, paths = sharded
    forward = train._forward

    def poisoned(run: train.Run, model: torch.nn.Module, images: torch.Tensor, step: int):
        loss, metrics = forward(run, model, images, step)
        return (loss * math.nan if step in (1, 4, 5, 6) else loss), metrics

    monkeypatch.setattr(train, "_forward", poisoned)
    work = tmp_path / "work"
    work.mkdir()
    with Reporter("test") as report, pytest.raises(HeadwaterError, match=r"lower pretrain\.lr"):
        train.fit(cfg, paths.shards, work, report)
    bad = [json.loads(line) for line in (work / "bad_steps.jsonl").read_text().splitlines()]
    assert [b["step"] for b in bad] == [1, 4, 5, 6]
    assert len(bad[0]["samples"]) == cfg.pretrain.batch_size
    found = checkpoints.latest(work)
    assert found is not None
    tensors = [t for t in found[1]["method"].values() if t.is_floating_point()]
    assert all(torch.isfinite(t).all() for t in tensors)


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
    rates = [train.learning_rate(s, 100, 1.0, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9] == pytest.approx(1.0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] < 1e-3


def test_norms_and_biases_are_not_decayed() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, plain = train.parameter_groups(module, 0.1)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
