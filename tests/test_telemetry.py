"""Telemetry of training, and where augmentation runs: neither changes what is learned."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import photo_tiles
from PIL import Image

from ssl_core import feed, job, shards, step, telemetry, train
from ssl_core.config import Config, Paths
from ssl_core.progress import Reporter
from ssl_core.telemetry import Telemetry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 48 photographs."""
    made = tmp_path_factory.mktemp("shards")
    samples = []
    for i, (name, tile) in enumerate(photo_tiles()[:48]):
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, "PNG")
        samples.append(
            shards.Sample("train", f"{i:064x}", "png", stream.getvalue(), name, str(i), "test")
        )
    shards.write(made, samples, 2**20, 48)
    return made


def config(**changes: Any) -> Config:
    pretrain = {
        "method": "simclr",
        "backbone_args": {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 2,
        },
        "image_size": 32,
        "crop_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "precision": "fp32",
        "options": {"blur": [0.5, 0.5], "solarise": [0.0, 0.2]},
    }
    return Config.model_validate({"pretrain": pretrain | changes})


def fit(folder: Path, work: Path, **changes: Any) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Log and weights of a run."""
    work.mkdir()
    with Reporter("test") as report:
        method = train.fit(config(**changes), folder, work, report)
    return (work / "log.jsonl").read_bytes(), method.state_dict()


def rows(work: Path) -> list[dict[str, Any]]:
    lines = [json.loads(x) for x in (work / telemetry.FILE).read_text().splitlines()]
    return [x for x in lines if "step" in x]


# --- where augmentation runs


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "batch_size": 4}])
def test_place_of_augmentation_changes_no_bit(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    log, weights = fit(folder, tmp_path / "a", augment="device", **changes)
    other, same = fit(folder, tmp_path / "b", augment="workers", **changes)
    assert log == other
    assert len(log.splitlines()) == 12
    assert all(torch.equal(weights[k], same[k]) for k in weights)


@pytest.mark.parametrize("faster", ["device", "workers"])
def test_auto_keeps_the_faster_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    """The views come from both places during the trial, in order and without a gap."""
    cfg = config(augment="auto", epochs=8)
    run = job.build(cfg, folder, tmp_path)
    now = 0.0

    def clock() -> float:
        return now

    monkeypatch.setattr(feed.time, "perf_counter", clock)
    batches = run.reader.batches(8, 0, run.steps)
    seen, places = [], []
    for number, (kept, images) in enumerate(feed.stream(run, batches, 0)):
        where = "device" if isinstance(images, torch.Tensor) else "workers"
        now += 1.0 if where == faster else 2.0
        seen.append(kept.tolist())
        places.append(where)
        views, boxes = feed.views(run, images, number)
        generator = torch.Generator().manual_seed(job.step_seed(0, number, 0))
        want, _ = run.augment.with_boxes(run.reader.take(kept), generator)
        assert all(torch.equal(a, b) for a, b in zip(views, want, strict=True))
        assert len(boxes) == len(views)
    assert seen == [run.reader.indices(i, 8).tolist() for i in range(run.steps)]
    assert set(places[: feed.TRIAL]) == {"device", "workers"}
    assert set(places[feed.TRIAL :]) == {faster}
    assert run.telemetry.about["augment"] == faster


def test_short_runs_try_nothing(folder: Path, tmp_path: Path) -> None:
    run = job.build(config(augment="auto", epochs=2), folder, tmp_path)
    stream = feed.stream(run, run.reader.batches(8, 0, run.steps), 0)
    assert all(isinstance(images, torch.Tensor) for _, images in stream)


def test_closing_the_stream_closes_the_reader(folder: Path, tmp_path: Path) -> None:
    run = job.build(config(augment="workers"), folder, tmp_path)
    batches = run.reader.batches(8)
    stream = feed.stream(run, batches, 0)
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(batches)


# --- telemetry


def test_every_step_has_a_row_whose_parts_add_up(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path / "w", augment="device", checkpoint_steps=3)
    found = rows(tmp_path / "w")
    assert [r["step"] for r in found] == list(range(12))
    for row in found:
        parts = sum(row.get(name, 0.0) for name in telemetry.SPANS)
        assert 0 < parts <= row["seconds"] * (1 + 1e-6)
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        assert 0 < row["mfu"] < 1.5  # of a measured peak
        assert row["peak_bytes"] > 2**20
    assert sum("checkpoint" in r for r in found) == 4
    summary = telemetry.summary(tmp_path / "w" / telemetry.FILE)
    assert sum(v for k, v in summary.items() if k.startswith("share/")) == pytest.approx(1)


class Perceptron(torch.nn.Module):
    """Called as a method is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(10, 20), torch.nn.BatchNorm1d(20), torch.nn.Linear(20, 5)
        )

    def forward(self, views: list[torch.Tensor], number: int) -> tuple[torch.Tensor, dict]:
        return self.layers(torch.cat(views)).square().mean(), {}


def test_flops_of_a_step_by_hand_and_nothing_left_behind() -> None:
    method = Perceptron()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    run: Any = SimpleNamespace(
        cfg=Config(), method=method, model=method, device=CPU, bf16=False,
        optimizer=torch.optim.SGD(method.parameters(), lr=1.0),
    )  # fmt: skip
    parts = [step.Part([torch.randn(4, 10), torch.randn(4, 10)], {}, None)] * 3
    flops = step.flops(run, parts, 0)
    # Forward and weights' gradients of both layers; the input's gradient of the second only.
    assert flops == 3 * 2 * 8 * (2 * (10 * 20 + 20 * 5) + 20 * 5)
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_counting_changes_no_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, weights = fit(folder, tmp_path / "a", method="dino", options={})
    monkeypatch.setattr(Telemetry, "set_flops", lambda self, flops: setattr(self, "flops", flops))
    monkeypatch.setattr("ssl_core.step.flops", lambda *_: math.nan)
    other, same = fit(folder, tmp_path / "b", method="dino", options={})
    assert log == other
    assert all(torch.equal(weights[k], same[k]) for k in weights)


def test_shares_of_a_made_up_run(tmp_path: Path) -> None:
    now = [0.0]
    found = Telemetry(CPU, tmp_path / telemetry.FILE, clock=lambda: now[0])

    def spend(name: str, seconds: float) -> None:
        with found.span(name):
            now[0] += seconds

    found.begin()
    for number in range(50):
        spend("wait", 100.0 if number == 0 else 0.1)  # the first does not count
        spend("augment", 0.2)
        spend("forward_backward", 0.5)
        now[0] += 0.2
        found.end_step(number, 64)
    assert found.short() == {"wait": pytest.approx(0.1)}
    found.close()
    summary = telemetry.summary(tmp_path / telemetry.FILE)
    want = {"wait": 0.1, "augment": 0.2, "forward_backward": 0.5, "optimiser": 0.0, "other": 0.2}
    assert {k: summary[f"share/{k}"] for k in want} == pytest.approx(want)
    assert summary["images_per_second"] == pytest.approx(64)
    assert len(rows(tmp_path)) == 50
    assert telemetry.summary(tmp_path / "missing.jsonl") == {}


def test_known_gpus_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H100 80GB HBM3": (989e12, 67e12),
        "NVIDIA H100 PCIe": (756e12, 51e12),
        "NVIDIA L40S": (362e12, 91.6e12),
        "NVIDIA L4": (121e12, 30.3e12),
    }
    for name, peaks in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_, name=name: name)
        found = [telemetry.peak_flops(torch.device("cuda"), bf16)[0] for bf16 in (True, False)]
        assert tuple(found) == pytest.approx(peaks)
    flops, source = telemetry.peak_flops(CPU, False)
    assert 1e9 < flops < 1e14
    assert "measured" in source


def test_stage_keeps_it_beside_the_product_and_dagster_shows_it(
    folder: Path, tmp_path: Path
) -> None:
    from assets.pretrain import _speed
    from ssl_core.stages import pretrain

    paths = Paths(tmp_path)
    assert _speed_of_nothing(paths) == {}
    fit(folder, tmp_path / "w", augment="device")
    pretrain._keep_telemetry(paths, tmp_path / "w")
    assert not (paths.pretrain / telemetry.FILE).exists()  # its bytes must not depend on time
    shown = _speed(paths)
    assert shown["speed/images_per_second"] > 0
    assert 0 <= shown["speed/share/wait"] < 1
    assert 0 < shown["speed/mfu"] < 1.5
    assert "| forward backward |" in shown["time"].value
    assert "data:image/png" in shown["throughput"].value


def _speed_of_nothing(paths: Paths) -> dict[str, Any]:
    """A product that came from elsewhere (dvc pull)."""
    from assets.pretrain import _speed

    paths.pretrain.mkdir(parents=True)
    (paths.pretrain / "lineage.json").write_text("{}")
    return _speed(paths)
