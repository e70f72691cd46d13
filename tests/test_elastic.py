"""Training that stops and goes on: at the same image with other batches or ranks, after signals,
with gradients of parts of a batch, with weights sharded over ranks."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.multiprocessing as mp
from torch import Tensor

from ssl_core import accumulation, checkpoints, dist, job, optim, step, train
from ssl_core.config import Config, Paths, Sam
from ssl_core.errors import HeadwaterError
from ssl_core.preemption import Preempted
from ssl_core.progress import Reporter

COUNT = 75  # images: no multiple of any batch
DINO = {"prototypes": 12, "hidden": 16, "bottleneck": 8, "locals_": 1}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return tiny.write(tmp_path, COUNT)


def fit(cfg: Config, paths: Paths, name: str = "work") -> dict[str, Tensor]:
    """The final state, whole."""
    work = paths.root / name
    work.mkdir(exist_ok=True)
    with Reporter("test") as report:
        method = train.fit(cfg, paths.shards, work, report)
    return {k: dist.whole(v).clone() for k, v in method.state_dict().items()}


def log(paths: Paths, name: str = "work") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (paths.root / name / "log.jsonl").read_text().splitlines()]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGTERM) -> None:
    """The process gets a signal within its so many-th step from now."""
    take, taken = step.take, []

    def stopping(*args: Any) -> Any:
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), number)
        return take(*args)

    monkeypatch.setattr(step, "take", stopping)


def watch_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that are trained on from now on."""
    seen: list[int] = []
    take = step.take

    def watched(run: job.Run, batches: list[step.Batch], number: int) -> Any:
        seen.extend(int(r) for rows, _ in batches for r in rows)
        return take(run, batches, number)

    monkeypatch.setattr(step, "take", watched)
    return seen


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_and_what_follows_is_exact(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    cfg = tiny.config(checkpoint_steps=100)
    whole = fit(cfg, paths, "whole")
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_after(patch, 6, number)
        with pytest.raises(Preempted) as stopped:
            fit(cfg, paths)
    assert stopped.value.code == code
    assert signal.getsignal(number) is handler
    note = checkpoints.latest(paths.root / "work")
    assert note is not None
    assert note.samples == 6 * 8
    assert len(log(paths)) == 6
    again = fit(cfg, paths)
    assert all(torch.equal(again[k], v) for k, v in whole.items())
    assert log(paths) == log(paths, "whole")


@pytest.mark.parametrize("change", [{"batch_size": 5}, {"batch_size": 21}, {"accumulate": 3}])
def test_another_batch_size_goes_on_at_the_same_image(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    first = tiny.config(epochs=3)
    seen = watch_rows(monkeypatch)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Preempted):
            fit(first, paths)
    rates = [row["lr"] for row in log(paths)]
    fit(tiny.config(epochs=3, **change), paths)
    for epoch in range(2):
        counts = Counter(seen[epoch * COUNT : (epoch + 1) * COUNT])
        assert counts == Counter(range(COUNT)), f"epoch {epoch}"
    rows = log(paths)
    assert [r["lr"] for r in rows[:6]] == rates
    size = change.get("batch_size", 8) * change.get("accumulate", 1)
    assert [r["samples"] for r in rows] == [8 * k for k in range(1, 7)] + [
        48 + size * k for k in range(1, len(rows) - 5)
    ]
    assert abs(rows[-1]["samples"] - 3 * COUNT) <= 1.5 * size
    # The schedule stands at the same share of the whole, its peak in proportion to the batch.
    steps, peak = round(3 * COUNT / size), 4e-3 * size / 256
    assert rows[6]["lr"] == pytest.approx(optim.learning_rate(48 // size, steps, peak, 0.1))


CASES: dict[str, dict[str, Any]] = {
    "mae": {"decoder_dim": 16, "decoder_heads": 2},
    "simmim": {},
    "simclr": tiny.SIZES,
    "vicreg": tiny.SIZES,
    "dino": DINO,
    "ibot": DINO,
    "msn": {"prototypes": 12, "hidden": 16, "out": 8, "locals_": 1},
    "supervised": {},
}


@pytest.mark.parametrize("method", CASES)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(paths: Paths, method: str) -> None:
    def gradients(accumulate: int, batch: int) -> tuple[float, dict[str, Tensor]]:
        cfg = tiny.config(
            method=method, options=CASES[method], accumulate=accumulate, batch_size=batch
        )
        run = job.build(cfg, paths.shards, paths.root)
        run.method.double().train()
        batches = list(run.reader.batches(8, 0, 2))  # the same views: augmented in two parts
        parts = step.parts(run, batches, 0)
        for part in parts:
            part.views = [v.double() for v in part.views]
        if accumulate == 1 and len(parts) == 2:
            parts = [step.joined(parts)]
        assert len(parts) == (2 if accumulate > 1 and run.by_parts else 1)
        loss, _ = step.gradients(run, parts, 0)
        grads = {n: p.grad for n, p in run.method.named_parameters() if p.grad is not None}
        return float(loss), grads

    (loss, whole), (added, parts) = gradients(1, 16), gradients(2, 8)
    assert added == pytest.approx(loss, rel=1e-9)
    assert parts.keys() == whole.keys()
    for name, grad in whole.items():
        # timm interpolates position embeddings in float32, whatever their type.
        torch.testing.assert_close(parts[name], grad, rtol=1e-6, atol=1e-7, msg=name)


def test_batch_norm_in_parts_is_refused(paths: Paths) -> None:
    cfg = tiny.config(accumulate=2, backbone="resnet10t", backbone_args={}, crop_size=32)
    with pytest.raises(HeadwaterError, match=r"batch norm in the encoder.*not of the whole"):
        job.build(cfg, paths.shards, paths.root)


def test_what_fsdp_cannot_do_is_refused(paths: Paths) -> None:
    for change, what in (
        ({"sam": Sam(radius=0.1)}, "pretrain.sam.radius"),
        ({"options": tiny.SIZES | {"optimizer": "lars"}}, "optimizer lars"),
        ({"accumulate": 2}, "method simclr"),
    ):
        with pytest.raises(HeadwaterError, match=rf"{what}.*pretrain.parallel: (fsdp|ddp)"):
            job.build(tiny.config(parallel="fsdp", **change), paths.shards, paths.root)


def test_the_best_encoder_is_exported_if_asked(paths: Paths) -> None:
    last = fit(tiny.config(check_steps=1), paths, "last")
    best = fit(tiny.config(check_steps=1, export="best"), paths)
    work = paths.root / "work"
    measures = {n.samples: n.facts["measure"] for n in checkpoints.notes(work)}
    note = checkpoints.best(work)
    assert note is not None
    assert note.facts["measure"] == max(m for m in measures.values() if m is not None)
    saved = torch.load(note.data, weights_only=True)
    assert all(torch.equal(saved[f"method.{k}"], v) for k, v in best.items())
    newest = max(measures)
    assert note.samples == newest or any(not torch.equal(best[k], v) for k, v in last.items())


# ---- several ranks -----------------------------------------------------------------------------

# Configuration, work folder, and: None to train; the step to be preempted in; 0 to restore only.
Jobs = list[tuple[Config, str, int | None]]


def ranks(root: Path, world: int, jobs: Jobs) -> None:
    """Train in so many processes; what comes out goes to <work folder>-<world>.pt.

    They are forked from one that has imported all: an import takes longer than the training.
    """
    multiprocessing.set_forkserver_preload(
        ["ssl_core.train", "timm", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
    )
    mp.start_processes(_rank, (world, str(root), jobs), world, start_method="forkserver")


def _rank(rank: int, world: int, root: str, jobs: Jobs) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group(
        "gloo", f"file://{root}/meet{world}", rank=rank, world_size=world
    )
    for cfg, name, stop in jobs:
        state: dict[str, Tensor] = {}
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Preempted):
            if stop and rank == world - 1:  # one rank alone is told
                stop_after(patch, stop)
            state = restored(cfg, Paths(root), name) if stop == 0 else fit(cfg, Paths(root), name)
        if rank == 0 and state:
            torch.save(state, f"{root}/{name}-{world}.pt")
    dist.teardown()


def restored(cfg: Config, paths: Paths, name: str) -> dict[str, Tensor]:
    """Weights and the optimiser's state as they are read from the newest checkpoint, whole."""
    run = job.build(cfg, paths.shards, paths.root / name)
    step_, _ = run.restore()
    assert run.samples(step_) == 48
    return {k: dist.whole(v).clone() for k, v in run.tensors().items()}


def result(paths: Paths, name: str, world: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(paths.root / f"{name}-{world}.pt", weights_only=True)
    return found


def assert_alike(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=tolerance, atol=tolerance, msg=key)


def test_shards_train_as_copies_do_and_fit_other_ranks(paths: Paths) -> None:
    """FSDP on 2 ranks equals DDP; what it saves is read by 1, 2 and 4 ranks, and by DDP."""
    base = {"method": "dino", "options": DINO, "epochs": 1, "checkpoint_steps": 2}
    two = {kind: tiny.config(**base, parallel=kind, batch_size=8) for kind in ("ddp", "fsdp")}
    mae = {"method": "mae", "options": CASES["mae"], "accumulate": 2, "batch_size": 4, "epochs": 1}
    jobs: Jobs = [(cfg, kind, None) for kind, cfg in two.items()]
    jobs += [(tiny.config(**mae, parallel=kind), f"mae-{kind}", None) for kind in two]
    jobs += [(two["fsdp"], "stopped", 3), (two["fsdp"], "stopped", 0)]
    jobs += [(two["fsdp"], "again", 3), (two["fsdp"], "again", None)]
    jobs += [(two["fsdp"], "mixed", 3), (two["ddp"], "mixed", None)]
    ranks(paths.root, 2, jobs)
    whole = result(paths, "ddp", 2)
    assert_alike(whole, result(paths, "fsdp", 2), 1e-5)
    assert_alike(result(paths, "mae-ddp", 2), result(paths, "mae-fsdp", 2), 1e-5)
    again = result(paths, "again", 2)
    assert all(torch.equal(again[k], v) for k, v in result(paths, "fsdp", 2).items())
    assert_alike(whole, result(paths, "mixed", 2), 1e-5)

    saved = result(paths, "stopped", 2)
    assert any(k.endswith("exp_avg") and v.abs().sum() > 0 for k, v in saved.items())
    assert len([*(paths.root / "stopped").glob("samples-*48/*.distcp")]) == 2
    alone = restored(tiny.config(**base, batch_size=16), paths, "stopped")
    four = tiny.config(**base, parallel="fsdp", batch_size=4)
    shutil.copytree(paths.root / "stopped", paths.root / "four")
    ranks(paths.root, 4, [(four, "stopped", 0), (four, "four", None)])
    for found in (alone, result(paths, "stopped", 4)):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[k], v) for k, v in saved.items())
    assert [r["samples"] for r in log(paths, "four")] == [16 * k for k in range(1, 6)]


def test_by_parts_is_declared() -> None:
    from ssl_core.methods import mae, simclr, simmim

    assert accumulation.by_parts(mae)
    assert accumulation.by_parts(simmim)
    assert not accumulation.by_parts(simclr)
