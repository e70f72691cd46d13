"""One optimiser step by itself: what it refuses, clips, joins and how its rates move."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from ssl_core import job, step

DINO = {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 1, "freeze": 0.0}
OPTIONS = {"dino": DINO, "simclr": tiny.SIZES}


def build(root: Path, **pretrain: Any) -> job.Run:
    run = job.build(tiny.config(**pretrain), tiny.write(root).shards, root)
    run.method.train()
    return run


def batches(run: job.Run, start: int, count: int) -> list[list[step.Batch]]:
    return [[batch] for batch in run.reader.batches(8, start, count)]


def snapshot(run: job.Run) -> dict[str, Tensor]:
    """Weights, buffers, teacher and the optimiser's state."""
    buffers = {f"buffer.{k}": v for k, v in run.method.named_buffers()}
    return {k: v.clone() for k, v in (run.tensors() | buffers).items()}


def spoil(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """One number of one gradient is ``value``; the loss stays finite."""
    gradients = step.gradients

    def spoiled(run: job.Run, *args: Any, **more: Any) -> Any:
        found = gradients(run, *args, **more)
        run.method.encoder.model.patch_embed.proj.bias.grad[0] = value  # type: ignore
        return found

    monkeypatch.setattr(step, "gradients", spoiled)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_gradient_that_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    run = build(tmp_path, method=method, options=OPTIONS[method])
    for number, batch in enumerate(batches(run, 0, 2)):
        step.take(run, batch, number)
    before = snapshot(run)
    assert any(k.startswith(job.OPTIMIZER) for k in before)
    (bad,) = batches(run, 2, 1)
    with monkeypatch.context() as patch:
        spoil(patch, value)
        loss, norm, _ = step.take(run, bad, 2)
    assert math.isfinite(loss)
    assert not math.isfinite(norm)
    after = snapshot(run)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    step.take(run, bad, 2)  # the same batch without the flaw
    moved = {k for k, v in snapshot(run).items() if not torch.equal(before[k], v)}
    for part in ("method.encoder.", "optimizer.", *(["method.teacher."] * (method == "dino"))):
        assert any(k.startswith(part) for k in moved), part


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_gradients_are_clipped_as_one_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    run = build(tmp_path)
    forward, used = step.forward, []

    def scaled(*args: Any, **more: Any) -> Any:
        loss, metrics = forward(*args, **more)
        return loss * scale, metrics

    def update(*_: Any) -> None:
        used.append(flat(run))

    monkeypatch.setattr(step, "forward", scaled)
    (batch,) = batches(run, 0, 1)
    step.gradients(run, step.parts(run, batch, 0), 0)
    raw = flat(run)
    monkeypatch.setattr(run.optimizer, "step", update)
    _, norm, _ = step.take(run, batch, 0)
    assert norm == pytest.approx(np.linalg.norm(raw), rel=1e-5)
    assert (norm > step.CLIP) == (scale > 1)
    shrunk = raw * min(1.0, step.CLIP / np.linalg.norm(raw))
    np.testing.assert_allclose(used[0], shrunk, rtol=1e-4, atol=1e-9)


def flat(run: job.Run) -> np.ndarray:
    """All gradients, (P,) float64."""
    grads = [p.grad.flatten() for p in run.method.parameters() if p.grad is not None]
    return torch.cat(grads).double().numpy()


def test_gradients_begin_anew_and_repeat_to_the_bit(tmp_path: Path) -> None:
    run = build(tmp_path, method="dino", options=DINO)
    (batch,) = batches(run, 0, 1)
    found = []
    for _ in range(2):
        torch.rand(3)  # the state of the global generator does not matter
        loss, _ = step.gradients(run, step.parts(run, batch, 0), 0)
        found.append((loss.item(), flat(run)))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])


def test_joined_parts_are_the_batch() -> None:
    views = [torch.randn(12, 3, 8, 8), torch.randn(12, 3, 4, 4)]
    boxes = [torch.randn(12, 4), torch.randn(12, 4)]
    labels, weights = torch.arange(12), torch.rand(12)
    pieces = [slice(0, 4), slice(4, 8), slice(8, 12)]
    parts = [
        step.Part(
            [v[s] for v in views], {"boxes": [b[s] for b in boxes], "labels": labels[s]}, weights[s]
        )
        for s in pieces
    ]
    whole = step.joined(parts)
    assert whole.inputs.keys() == {"boxes", "labels"}
    assert whole.weights is not None
    for found, given in zip(
        [*whole.views, *whole.inputs["boxes"], whole.inputs["labels"], whole.weights],
        [*views, *boxes, labels, weights],
        strict=True,
    ):
        assert torch.equal(found, given)
    for part in parts:
        part.weights = None
    assert step.joined(parts).weights is None


def test_rates_follow_their_closed_form(tmp_path: Path) -> None:
    options = tiny.SIZES | {"weight_decay": 0.04, "weight_decay_end": 0.4}
    run = build(tmp_path, options=options, epochs=11, warmup=0.2, lr=0.32)
    total = round(11 * 75 / 8)
    assert run.steps == total
    ramp, peak = round(0.2 * total), 0.32 * 8 / 256
    rates, decays = [], []
    for number in range(total + 1):
        step.set_rates(run, number)
        groups = run.optimizer.param_groups
        assert groups[0]["lr"] == groups[1]["lr"]
        assert groups[1]["weight_decay"] == 0  # norms and biases
        rates.append(groups[0]["lr"])
        decays.append(groups[0]["weight_decay"])
    t = np.arange(total + 1)
    cosine = np.cos(np.pi * (t - ramp) / (total - ramp))
    np.testing.assert_allclose(
        rates, np.where(t < ramp, peak * (t + 1) / ramp, peak * (1 + cosine) / 2), atol=1e-15
    )
    np.testing.assert_allclose(decays, 0.22 - 0.18 * np.cos(np.pi * t / total))
    assert (rates[0], rates[ramp - 1]) == (pytest.approx(peak / ramp), pytest.approx(peak))
    assert rates[total] == pytest.approx(0, abs=1e-15)
    run.factor = 0.5
    step.set_rates(run, ramp)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(peak / 2)


def test_a_weight_decay_of_the_users_own_stands_still(tmp_path: Path) -> None:
    options = tiny.SIZES | {"weight_decay": 0.04, "weight_decay_end": 0.4}
    run = build(tmp_path, options=options, weight_decay=0.07)
    for number in (0, run.steps // 2, run.steps):
        step.set_rates(run, number)
        assert [g["weight_decay"] for g in run.optimizer.param_groups] == [0.07, 0.0]
