"""The comparison of methods: equal compute, resumed, paired with random init."""

from __future__ import annotations

import copy
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fill
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from ssl_core import embed, finetune, job, models, train
from ssl_core.artifacts import read_json
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.evaluate import linear
from ssl_core.report import bench as pictures
from ssl_core.stages import _bench_summary, _trained, bench_methods
from ssl_core.stages.seeds import images_of

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
TINY = {
    "sets": {"tiles": "images"},
    "methods": ["simclr", "mae"],
    "seeds": 2,
    "teraflops": 0.003,
    "fine_tune_steps": 4,
    "backbone_args": VIT,
    "batch_size": 16,
    "options": {"mae": {"decoder_dim": 16, "decoder_heads": 2}},
}


def config(paths: Paths, **changes: Any) -> Config:
    bench = {f"bench.{k}": v for k, v in (TINY | changes).items()}
    return load(paths.root / "params.yaml", bench)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(tmp_path_factory.mktemp("bench"))
    fill(paths.root)
    bench_methods.run(config(paths), paths)
    return paths


def rows(paths: Paths) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(paths.reports / "bench-methods.json")["rows"]
    return found


def test_every_arm_and_baseline_is_measured(done: Paths) -> None:
    seen = {(r["name"], r["seed"]) for r in rows(done)}
    assert seen == {(n, s) for n in ("random", "simclr", "mae") for s in (0, 1)} | {("pixels", 0)}
    for row in rows(done):
        assert 0 <= row["knn"] <= 1
        assert ("fine_tune" in row) == (row["name"] != "pixels")
    table = (done.reports / "bench-methods.md").read_text()
    assert all(name in table for name in ("simclr", "mae", "random init", "raw pixels"))
    assert (done.reports / "bench-methods.png").read_bytes().startswith(b"\x89PNG")


def test_compute_is_equal(done: Paths) -> None:
    cfg = config(done)
    folder = done.runs / "bench/tiles/shards"
    for name in ("simclr", "mae"):
        steps = next(r["steps"] for r in rows(done) if r["name"] == name)
        one = _trained.step_flops(bench_methods.training(cfg, name, 0), folder)
        assert abs(steps * one - 3e9) <= one / 2  # whole steps
    steps = {r["name"]: r["steps"] for r in rows(done) if "steps" in r}
    assert steps["mae"] > steps["simclr"]  # it sees a quarter of one view


def test_flops_of_a_step_are_those_of_the_encoder_three_times(done: Paths) -> None:
    """A linear layer costs 2 x its weights per token forward, and twice that backward."""
    own = bench_methods.training(config(done), "simclr", 0)
    counted = _trained.step_flops(own, done.runs / "bench/tiles/shards")
    blocks = models.create("vit_tiny_patch16_224", VIT).model.blocks
    *_, last = ({n: p.numel() for n, p in b.named_parameters() if p.ndim > 1} for b in blocks)
    tokens, views = 17, 2 * 16
    every = last["attn.qkv.weight"]  # of the last block's tokens, only the first goes further
    macs = (len(blocks) - 1) * sum(last.values()) * tokens
    macs += every * tokens + (sum(last.values()) - every)
    least = 3 * 2 * views * macs
    assert least < counted < 2 * least  # attention, patches and projector come on top


def test_a_second_call_trains_nothing(done: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(done)
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained again"))
    bench_methods.run(config(done), done)
    assert rows(done) == before
    with pytest.raises(pytest.fail.Exception):  # another budget is another result
        bench_methods.run(config(done, teraflops=0.004), done)


def test_fine_tuning_starts_from_the_probe_and_learns(done: Paths) -> None:
    cfg = config(done)
    images = images_of(done.runs / "bench/tiles/shards", 32)
    torch.manual_seed(0)
    encoder = models.create("vit_tiny_patch16_224", VIT)
    features = embed.compute(encoder, images.reader, *models.normalisation(3))
    train_set, test_set = images.sets(features)
    head = linear.fit(train_set)

    def right(weight: np.ndarray, rate: float, steps: int) -> float:
        own, rows = copy.deepcopy(encoder), images.known("train")
        named = finetune.predict(
            own,
            (weight, head.bias),
            images.reader,
            images.rows.labels,
            rows,
            rows,
            finetune.Budget(steps, 16, rate),
            0,
        )
        return float((named == images.rows.labels[rows]).mean())

    probe = float((linear.named(head, train_set, train_set.features) == train_set.labels).mean())
    assert right(head.weight, 0.0, 1) == pytest.approx(probe, abs=0.02)  # nothing has moved yet
    assert right(0 * head.weight, 3e-3, 100) > 0.8  # from nothing
    named = _trained.fine_tuned(cfg.bench.fine_tune_steps, 0, images, copy.deepcopy(encoder), head)
    assert len(named) == len(test_set)


def test_encoders_are_kept_for_other_measures(done: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained again"))
    bench_methods.run(config(done, fine_tune_steps=2), done)
    assert all("fine_tune" in r for r in rows(done) if r["name"] != "pixels")


def test_random_init_is_what_training_starts_from(done: Paths, tmp_path: Path) -> None:
    cfg = config(done)
    encoder, _ = bench_methods._encoder(
        cfg, bench_methods.Case("tiles", "random", 1), tmp_path, tmp_path, None
    )
    own = bench_methods.training(cfg, "simclr", 1)
    run = job.build(own, done.runs / "bench/tiles/shards", tmp_path)
    mine, start = encoder.model.state_dict(), run.method.encoder.model.state_dict()
    assert all(torch.equal(mine[k], start[k]) for k in start)


def test_summary_is_students_interval_and_a_paired_margin() -> None:
    scores = {"random": [0.1, 0.2, 0.3], "byol": [0.2, 0.31, 0.45]}
    rows = [
        {"set": "a", "name": name, "seed": seed, "knn": value}
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    byol = {r["name"]: r for r in _bench_summary.summary(rows)}["byol"]["knn"]
    low, high = stats.t.interval(
        0.95, 2, loc=np.mean(scores["byol"]), scale=stats.sem(scores["byol"])
    )
    assert byol["mean"] - byol["half"] == pytest.approx(low)
    assert byol["mean"] + byol["half"] == pytest.approx(high)
    gains = np.subtract(scores["byol"], scores["random"])
    assert byol["margin"] == pytest.approx(gains.mean())
    assert byol["margin_half"] == pytest.approx(
        stats.t.ppf(0.975, 2) * gains.std(ddof=1) / math.sqrt(3)
    )
    assert _bench_summary.half_width([0.5]) is None
    assert "+12.0 ± " in pictures.markdown(
        [r | {"linear": r["knn"]} for r in _bench_summary.summary(rows)]
    )


def test_what_is_not_there_is_named_before_anything_is_trained(done: Paths) -> None:
    with pytest.raises(HeadwaterError, match=r"bench\.sets\.other = nowhere"):
        bench_methods.run(config(done, sets={"other": "nowhere"}), done)
    with pytest.raises(HeadwaterError, match=r"bench: mae: ratoi.*section bench"):
        bench_methods.run(config(done, options={"mae": {"ratoi": 0.5}}), done)
    with pytest.raises(HeadwaterError, match="did you mean 'simclr'"):
        bench_methods.run(config(done, methods=["mae", "simlcr"]), done)


def test_a_training_that_is_stopped_is_a_result_too(
    done: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise HeadwaterError("training at step 9", "has collapsed", "turn the knob")

    monkeypatch.setattr(_trained.pretrain, "fit", stop)
    bench_methods.run(config(done, methods=["simclr", "byol"]), done)
    found = read_json(done.reports / "bench-methods.json")
    byol = {r["name"]: r for r in found["table"]}["byol"]
    assert (byol["seeds"], byol["failed"], "linear" in byol) == (0, 2, False)
    assert "turn the knob" in found["rows"][-1]["failed"]
    assert "byol (2 stopped)" in (done.reports / "bench-methods.md").read_text()


def test_quick_is_one_seed_and_less_compute() -> None:
    bench = Config().bench
    fast = bench_methods.quick(bench)
    assert fast.seeds == 1
    assert fast.teraflops == pytest.approx(bench.teraflops / 10)
    assert not fast.fine_tune_steps
    assert fast.sets == bench.sets


def test_embedded_digits_are_real_and_reproducible(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "data/digits/unpack.py"
    subprocess.run([sys.executable, script, "--root", tmp_path], check=True)
    found = sorted(tmp_path.rglob("*.png"), key=lambda p: p.name)
    assert len(found) == 1797
    assert {p.parent.name for p in found} == set("0123456789")
    rng, digit = np.random.default_rng(0), load_digits().images[0]
    again = runpy.run_path(str(script))["picture"](digit, rng)
    with Image.open(found[0]) as first:
        assert first.size == (32, 32)
        assert first.tobytes() == again.tobytes()
