"""Studies: each runs on a tiny set, by an honest harness and rule; what they measure is exact."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

from ssl_core import heads, plugins, shards, train
from ssl_core.__main__ import app
from ssl_core.artifacts import read_json, write_json
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.losses.nt_xent import nt_xent
from ssl_core.progress import Reporter
from ssl_core.stages import _trained
from ssl_core.stages.seeds import images_of
from ssl_core.studies import (
    _common,
    _history,
    _lab,
    _pairs,
    _parts,
    _subspace,
    _worse,
    _write,
    alignment,
    label_free,
    projector,
    temperature,
)

LEVELS = {0: "round/zero", 6: "round/six", 1: "straight/one", 7: "straight/seven"}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
BENCH = {
    "sets": {"tiny": "shards"},
    "backbone_args": VIT | {"class_token": False, "global_pool": "avg"},
    "image_size": 16,
    "batch_size": 8,
    "fine_tune_steps": 2,
    "options": {
        "simclr": tiny.SIZES,
        "supcon": tiny.SIZES,
        "moco_v3": tiny.SIZES,
        "cl_mim": tiny.SIZES,
        "mae": {"decoder_dim": 16, "decoder_heads": 2},
    },
}
STUDY = {
    "teraflops": 1.2e-4,
    "seeds": 2,
    "temperatures": [0.1, 0.2, 1.0],
    "classes": [2, 4],
    "images": 24,
    "depths": [0, 2],
    "quantities": [0.25, 0.5],
    "shots": [1, 2],
    "contrast": ["moco_v3"],
}


@dataclass(frozen=True)
class Expected:
    """What a study's rows must hold, and its least number of claims."""

    columns: tuple[str, ...]
    claims: int


TABLE = {
    "alignment": Expected(("axis", "share", "linear", "coarse_linear", "shots_1", "steps"), 8),
    "cl_vs_mim": Expected(("layer", "attention_nmi", "amplitude", "fine_tune", "layer_knn"), 6),
    "label_free": Expected(("axis", "family", "rankme", "lidar", "alpha_req", "uniformity"), 6),
    "projector": Expected(("cut", "rho", "jitter_r2", "read_most_rho", "linear"), 7),
    "temperature": Expected(("hardest", "own_class", "uniformity", "tolerance", "knn"), 5),
}
BY_NAME = pytest.mark.parametrize("name", TABLE)


def picture(digit: np.ndarray, shade: int) -> bytes:
    small = Image.fromarray((digit * 15).clip(0, 255).astype(np.uint8)).convert("RGB")
    pixels = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC)) // 2 + shade
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def samples() -> list[shards.Sample]:
    """Four digits of two kinds in two hands, a light and a dark one; a few without label."""
    images, labels = load_digits(return_X_y=True)
    found = []
    for i in np.flatnonzero(np.isin(labels, list(LEVELS)))[:160]:
        source, split = ("dark", "light")[i % 2], "test" if i % 4 < 1 or i % 4 == 3 else "train"
        label = None if i % 29 == 0 else LEVELS[int(labels[i])]
        data = picture(images[i].reshape(8, 8), 100 * (i % 2))
        found.append(shards.Sample(split, f"{i:064x}", "png", data, label, f"g{i}", source))
    return sorted(found, key=lambda s: s.split)


def config(**study: Any) -> Config:
    return Config.model_validate({"bench": BENCH, "study": STUDY | study})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    found = Paths(tmp_path_factory.mktemp("studies"))
    (found.root / "shards").mkdir()
    shards.write(found.root / "shards", samples(), 2**20, 16)
    return found


@pytest.fixture(scope="module")
def study(paths: Paths) -> Callable[[str], _common.Study]:
    """A study by name, run once."""
    done: dict[str, _common.Study] = {}

    def get(name: str) -> _common.Study:
        if name not in done:
            done[name] = _write.run(name, config(), paths)
        return done[name]

    return get


@pytest.fixture
def lab(paths: Paths) -> Any:
    with _lab.opened("test", config(), paths, quick=False) as found:
        yield found


# ---- every study -------------------------------------------------------------------------------


def test_table_holds_every_study() -> None:
    assert list(TABLE) == plugins.names("studies")


@BY_NAME
def test_study_has_rows_by_seed_pictures_and_claims(
    name: str, study: Callable[[str], _common.Study]
) -> None:
    found = study(name)
    assert set(found.rows["seed"]) == {0, 1}
    for column in TABLE[name].columns:
        assert (
            np.isfinite(found.rows[column].dropna().astype(float, errors="ignore")).all()
            if (found.rows[column].dtype.kind == "f")
            else column in found.rows
        )
        assert found.rows[column].notna().any(), column
    assert all(png.startswith(b"\x89PNG") for png in found.pictures.values())
    assert len(found.claims) >= TABLE[name].claims
    for claim in found.claims:
        assert claim.verdict in ("yes", "no", "undecided")
        assert "arXiv" in claim.source or claim.source.startswith("a check")
        assert claim.low <= claim.value <= claim.high or claim.seeds < 2
    assert all("axis of quantity" in text for text in found.left_out)  # 4 steps see few


@BY_NAME
def test_files_say_what_was_found(
    name: str, study: Callable[[str], _common.Study], paths: Paths
) -> None:
    found, start = study(name), paths.reports / _write.stem(name)
    page = start.with_suffix(".md").read_text()
    assert all(claim.found() in page and claim.text in page for claim in found.claims)
    told = read_json(start.with_suffix(".json"))
    assert [c["verdict"] for c in told["claims"]] == [c.verdict for c in found.claims]
    assert told["settings"]["study"]["seeds"] == 2
    for file in told["pictures"].values():
        assert f"({file})" in page
        assert (paths.reports / file).exists()
    pd.testing.assert_frame_equal(
        pd.read_parquet(start.with_suffix(".parquet")), found.rows.reset_index(drop=True)
    )
    assert _write.about(name)


@BY_NAME
def test_a_second_call_trains_and_measures_nothing(
    name: str,
    study: Callable[[str], _common.Study],
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = study(name)
    for place, attribute in ((train, "fit"), (_history, "follow"), (_lab, "named")):
        monkeypatch.setattr(place, attribute, lambda *_, **__: pytest.fail("done again"))
    again = plugins.load("studies", name).run(config(), paths)
    pd.testing.assert_frame_equal(again.rows, before.rows)
    assert [str(c) for c in again.claims] == [str(c) for c in before.claims]  # NaN too


def test_another_setting_is_another_training(
    study: Callable[[str], _common.Study], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    study("temperature")
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained again"))
    for changes in ({"teraflops": 2e-4}, {"temperatures": [0.1, 0.3]}, {"images": 20}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            temperature.run(config(**changes), paths)


def test_command_runs_by_name_with_hyphens(
    study: Callable[[str], _common.Study], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = study("label_free")
    monkeypatch.chdir(paths.root)
    write_json(paths.root / "params.json", {"bench": BENCH, "study": STUDY})  # JSON is YAML
    given = ["study", "label-free", "-p", "params.json"]
    shown = CliRunner().invoke(app, [*given, "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert [c["verdict"] for c in told["claims"]] == [c.verdict for c in expected.claims]
    wrong = CliRunner().invoke(app, ["study", "temprature", "-p", "params.json"])
    assert wrong.exit_code
    assert "did you mean 'temperature'" in str(wrong.exception)


def test_a_stopped_training_is_left_out_and_named(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise HeadwaterError("training at step 9", "has collapsed", "turn the knob")

    real = train.fit
    monkeypatch.setattr(
        train, "fit", lambda cfg, *rest: stop() if cfg.seed == 1 else real(cfg, *rest)
    )
    found = temperature.run(config(images=16, temperatures=[0.2, 1.0], classes=[2]), paths)
    assert set(found.rows["seed"]) == {0}
    assert len(found.left_out) == 2
    assert "seed 1" in found.left_out[0]
    assert "turn the knob" in found.left_out[0]
    assert all(c.verdict == "undecided" and c.seeds <= 1 for c in found.claims)


def test_what_a_set_cannot_answer_is_said(paths: Paths) -> None:
    table = _parts.index(paths.root / "shards")
    assert not alignment.has_levels(table.assign(label="digits/" + table["label"].str[-3:]))
    found = temperature.run(config(classes=[2, 9], temperatures=[0.1, 0.2]), paths)
    assert found.left_out == ("tiny: fewer than 9 classes have 3 training images.",)
    with pytest.raises(HeadwaterError, match=r"study\.sets 'nowhere'"):
        temperature.run(config(sets=["nowhere"]), paths)


# ---- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.3, 0.31, 0.29], "yes"),
        ([-0.3, -0.31, -0.29], "no"),
        ([0.3, -0.1, 0.2], "undecided"),
        ([0.5], "undecided"),
        ([], "undecided"),
        ([0.3, 0.31, float("nan")], "yes"),
    ],
)
def test_rule_is_students_interval_against_zero(values: list[float], verdict: str) -> None:
    claim = _common.judge("arXiv 1", "A is B", "s", "a", dict(enumerate(values)))
    assert claim.verdict == verdict
    live = [v for v in values if np.isfinite(v)]
    assert claim.seeds == len(live)
    if len(live) > 1:
        low, high = stats.t.interval(0.95, len(live) - 1, np.mean(live), stats.sem(live))
        assert (claim.low, claim.high) == pytest.approx((low, high))


def test_differences_are_paired_by_seed() -> None:
    rows = pd.DataFrame(
        {"seed": [0, 0, 1, 1, 2], "arm": [*"abab", "a"], "x": [1.0, 0.8, 5.0, 4.7, 9.0]}
    )
    found = _common.difference(rows, "x", rows["arm"] == "a", rows["arm"] == "b")
    assert found.to_dict() == pytest.approx({0: 0.2, 1: 0.3})  # seed 2 has no partner


def test_a_claim_is_judged_as_planted() -> None:
    """Accuracy that peaks in the middle, and at a lower temperature the more classes there are."""
    lines = []
    for seed in range(3):
        for classes in (2, 10, 50):
            for t in (0.05, 0.1, 0.2, 0.5, 1.0):
                best = math.log(0.4) - 0.3 * math.log(classes / 2)
                value = 0.5 - 0.1 * (math.log(t) - best) ** 2 + 0.001 * seed * t
                facts = {"set": "s", "classes": classes, "temperature": t, "seed": seed}
                lines.append(facts | dict.fromkeys(temperature.MEASURES, t + seed / 1000))
                lines[-1][temperature.ACCURACY] = value
    rows = pd.DataFrame(lines)
    by_text = {c.text: c.verdict for c in temperature.report(rows, Config(), []).claims}
    assert by_text["Accuracy is best at a middle temperature"] == "yes"
    assert by_text["Fewer classes want a larger temperature"] == "yes"
    assert by_text["A small temperature spends the gradient on the hardest negatives"] == "no"
    assert by_text["A small temperature makes features more uniform"] == "yes"
    assert temperature.best(rows).set_index("classes")["best"].to_dict() == {
        2: 0.5,
        10: 0.2,
        50: 0.2,
    }


# ---- the harness -------------------------------------------------------------------------------


def test_parts_are_nested_and_keep_shares_of_classes() -> None:
    rng = np.random.default_rng(0)
    keys = pd.Series([f"k{i}" for i in range(1000)])
    label = pd.Series(rng.choice(["a", "b", "c"], 1000, p=[0.7, 0.2, 0.1])).mask(
        keys.index % 50 == 0
    )
    small, middle, large = _parts.nested(keys, label, [100, 250, 600], seed=3)
    assert small < middle < large
    assert (len(small), len(middle), len(large)) == (100, 250, 600)
    for part in (small, middle, large):
        for name in "abc":
            share = (label[keys.isin(part)] == name).mean()
            assert share == pytest.approx((label == name).mean(), abs=2 / len(part))
    assert small != _parts.nested(keys, label, [100], seed=4)[0]
    assert small == _parts.nested(keys, label, [100, 250, 600], seed=3)[0]


def test_classes_give_equally_many_images(paths: Paths) -> None:
    table = _parts.index(paths.root / "shards")
    for classes, images in ((2, 24), (4, 24), (3, 20)):
        part = _parts.of_classes(table, classes, images, seed=1)
        count = part["label"].value_counts()
        assert len(count) == classes
        assert count.sum() == images
        assert count.max() - count.min() <= 1
        assert set(part["split"]) == {"train"}
        assert part["key"].is_unique
    assert not len(_parts.of_classes(table, 5, 24, seed=1))
    assert not len(_parts.of_classes(table, 2, 1000, seed=1))


def test_pretraining_never_sees_a_test_image(paths: Paths, tmp_path: Path) -> None:
    folder = paths.root / "shards"
    sets = [p for p in (paths.runs / "studies/sets").iterdir() if (p / "index.json").exists()]
    for made in sets:
        _parts.require_disjoint(made, folder)
    train_rows = _parts.index(folder, "train")
    assert _parts.write(tmp_path, folder, train_rows).exists()
    leaked = _parts.index(folder, "test").head(3).assign(split="train")
    bad = _parts.write(tmp_path, folder, pd.concat([train_rows, leaked]))
    with pytest.raises(HeadwaterError, match=r"trains on 3 of the test split \(key\)"):
        _parts.require_disjoint(bad, folder)


def test_axes_have_equal_steps_or_equal_epochs(
    study: Callable[[str], _common.Study], lab: _lab.Lab, paths: Paths
) -> None:
    rows = study("alignment").rows
    own = rows[rows["axis"].isin(["quantity", "quality", "domain"])]
    assert own["steps"].nunique() == 1
    assert set(rows[rows["axis"] == alignment.NONE]["steps"]) == {0}
    assert set(own[own["axis"] == "quantity"]["share"].round(2)) == {0.25, 0.5, 1.0}
    whole = own[own["arm"] == alignment.WHOLE].iloc[0]
    images = len(_parts.index(paths.root / "shards", "train"))
    assert whole["epochs"] == pytest.approx(8 * whole["steps"] / images)
    sizes = own[own["axis"] == "domain"].groupby("arm")["share"].first()
    assert sizes.nunique() == 1
    assert set(sizes.index) == {"dark", "light", "mixed"}
    folder = paths.root / "shards"
    half, full = (lab.training(folder, "simclr", 0, share=s).cfg for s in (0.5, 1.0))
    batch = full.pretrain.batch_size
    epochs = [_trained.with_budget(c, folder).pretrain.epochs for c in (half, full)]
    steps = [e * images / batch for e in epochs]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1.01)
    assert steps[1] > 3


def test_only_training_pixels_change_and_the_same_way_each_time(
    paths: Paths, tmp_path: Path
) -> None:
    folder = paths.root / "shards"
    table = _parts.index(folder)
    change = _worse.KINDS["salt and pepper"]
    made = [_parts.write(tmp_path / n, folder, table, change, "x") for n in ("one", "two")]
    first, second, clean = (images_of(f, 16) for f in (*made, folder))
    for images in (first, second):
        assert (images.rows.sha256 == clean.rows.sha256).all()
    rows = np.arange(len(clean.rows))
    a, b, c = (i.reader.take(rows) for i in (first, second, clean))
    assert torch.equal(a, b)
    same = (a == c).flatten(1).all(1).numpy()
    assert same[clean.split == "test"].all()
    assert not same[clean.split == "train"].any()


def test_damage_is_what_its_name_says() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(20, 230, (64, 64, 3), dtype=np.uint8)
    peppered = _worse.salt_and_pepper(noise, np.random.default_rng(1))
    hit = (peppered != noise).any(-1)
    assert hit.mean() == pytest.approx(_worse.SHARE, abs=0.015)
    assert set(np.unique(peppered[hit])) == {0, 255}
    flat = np.full((64, 64, 3), 90, np.uint8)
    for change in (_worse.downsampled, _worse.jpeg):
        assert np.abs(change(flat, rng).astype(int) - 90).max() <= 2
        assert change(noise, rng).std() < noise.std()
        assert change(noise, rng).shape == noise.shape
    blocks = noise.reshape(16, 4, 16, 4, 3).mean((1, 3))
    small = np.asarray(
        Image.fromarray(_worse.downsampled(noise, rng)).resize((16, 16), Image.Resampling.BOX)
    )
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.95


def test_coarse_labels_are_an_exact_map_of_fine_ones(paths: Paths) -> None:
    images = images_of(paths.root / "shards", 16)
    rows, _ = images.sets(np.zeros((len(images.rows), 1), np.float32))
    upper = alignment.to_coarse(rows)
    assert upper.classes == ("round", "straight")
    for fine, code in zip(rows.labels, upper.labels, strict=True):
        assert rows.classes[fine].startswith(upper.classes[code] + "/")


# ---- closed forms ------------------------------------------------------------------------------


def pair(n: int = 6, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.random.default_rng(0).normal(size=(2, n, d))
    return a, b


@pytest.mark.parametrize("t", [0.05, 0.5, 2.0])
def test_pushes_are_the_gradient_of_nt_xent(t: float) -> None:
    """By autograd on the matrix of cosines, which the loss sees through a planted projection."""
    a, b = pair()
    z = nn.functional.normalize(torch.from_numpy(np.concatenate([a, b])), dim=1)
    s = (z @ z.T).requires_grad_()
    n = len(a)
    logits = (s / t).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    partner = torch.arange(2 * n).roll(n)
    losses = nn.functional.cross_entropy(logits, partner, reduction="none")
    expected_loss = nt_xent(torch.from_numpy(a), torch.from_numpy(b), t)
    assert float(losses.detach().mean()) == pytest.approx(float(expected_loss))
    losses.sum().backward()
    expected = s.grad.numpy().copy()
    pulls = expected[np.arange(2 * n), partner].copy()
    expected[np.arange(2 * n), partner] = 0
    found = _pairs.pushes(a, b, t)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), -pulls, atol=1e-12)


def test_hardest_share_goes_from_even_to_all() -> None:
    a, b = pair(n=26)  # 50 negatives: the hardest tenth are five
    shares = [_pairs.hardest_share(_pairs.pushes(a, b, t)) for t in (1e6, 1.0, 0.1, 1e-3)]
    assert shares[0] == pytest.approx(0.1, abs=1e-4)
    assert shares[-1] == pytest.approx(1.0, abs=1e-6)
    assert shares == sorted(shares)


def test_class_excess_is_one_for_even_pushes() -> None:
    a, b = pair(n=8)
    labels = np.arange(8) % 2
    assert _pairs.class_excess(_pairs.pushes(a, b, 1e6), labels) == pytest.approx(1, abs=1e-4)
    assert math.isnan(_pairs.class_excess(_pairs.pushes(a, b, 1.0), np.arange(8)))
    axis = np.eye(2)[labels] + 0.01 * a[:, :2]  # classes lie apart: pushes stay within them
    # Of 14 negatives six are of the anchor's class.
    assert _pairs.class_excess(_pairs.pushes(axis, axis, 0.05), labels) == pytest.approx(
        14 / 6, rel=1e-3
    )


def test_reading_of_a_linear_projector_is_its_gram_matrix() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    h = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    w = layer.weight.detach().double().numpy()
    np.testing.assert_allclose(_subspace.reading(layer, h), w.T @ w, atol=1e-5)
    values, vectors = _subspace.directions(w.T @ w)
    np.testing.assert_allclose(values[:4], np.linalg.svd(w)[1], atol=1e-7)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-10)


def test_reading_of_a_relu_net_is_a_mean_over_rows() -> None:
    torch.manual_seed(0)
    net = heads.projector(4, 8, 3).eval()
    h = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    step, expected = 1e-3, np.zeros((4, 4))
    for row in h:
        moved = torch.from_numpy(
            np.stack([row + s * step * e for e in np.eye(4, dtype=np.float32) for s in (1, -1)])
        )
        with torch.no_grad():
            out = net(moved.float()).double().numpy().reshape(4, 2, 3)
        jacobian = (out[:, 0] - out[:, 1]).T / (2 * step)  # (3, 4)
        expected += jacobian.T @ jacobian / len(h)
    np.testing.assert_allclose(_subspace.reading(net, h), expected, rtol=0.05, atol=1e-3)


def test_planted_subspace_is_found() -> None:
    """W = [I_r 0] reads the first r axes; what augmentation does beyond them stays unread."""
    w = np.zeros((2, 6))
    w[:, :2] = np.eye(2)
    values, vectors = _subspace.directions(w.T @ w)
    assert _subspace.effective_rank(values) == pytest.approx(2)
    assert _subspace.enough(values) == 2
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(200, 1, 6)), 4, axis=1)
    x[:, :, 4] = rng.normal(size=(200, 4))  # augmentation alone
    assert projector.rho(x @ vectors[:, :2]) == pytest.approx(1)
    assert projector.rho(x @ vectors[:, 2:]) < 0.9
    assert projector.rho(x[:, :, 4:5]) == pytest.approx(0, abs=0.1)


def test_effective_rank_and_enough() -> None:
    assert _subspace.effective_rank(np.ones(7)) == pytest.approx(7)
    assert _subspace.effective_rank(np.array([1.0, 0, 0])) == pytest.approx(1)
    assert math.isnan(_subspace.effective_rank(np.zeros(3)))
    assert _subspace.enough(np.array([1.0, 1.0, 1e-9])) == 2
    assert _subspace.enough(np.ones(100)) == 99


def test_regression_finds_what_is_there_and_no_more() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    y = x[:, :2].astype(float) @ rng.normal(size=(2, 3))
    assert _subspace.regression(x[:300], y[:300], x[300:], y[300:]) > 0.99
    noise = rng.normal(size=(600, 3))
    assert _subspace.regression(x[:300], noise[:300], x[300:], noise[300:]) < 0.05


def test_what_a_projector_zeroes_is_lost_at_its_output() -> None:
    """Guillotine by plan: z keeps the half of h with label A, and loses the one with B."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 2))
    h = rng.normal(size=(400, 8), scale=0.3).astype(np.float32)
    h[:, :4] += labels[:, :1]
    h[:, 4:] += labels[:, 1:]
    net = heads.projector(8, 8, 8, 1).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4)))
    cuts = projector._onward(net, h)
    assert list(cuts) == ["h", "z"]

    def right(x: np.ndarray, which: int) -> float:
        far = [((x[300:] - x[:300][labels[:300, which] == k].mean(0)) ** 2).sum(1) for k in (0, 1)]
        return float((np.argmin(far, 0) == labels[300:, which]).mean())

    assert min(right(cuts["h"], 0), right(cuts["h"], 1), right(cuts["z"], 0)) > 0.95
    assert right(cuts["z"], 1) < 0.65


def test_projectors_are_cut_at_their_layers() -> None:
    net = heads.projector(6, 8, 4, 3).eval()
    h = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    cuts = projector._onward(net, h)
    assert [f"{k}:{v.shape[1]}" for k, v in cuts.items()] == ["h:6", "p1:8", "p2:8", "z:4"]
    np.testing.assert_allclose(cuts["z"], net(torch.from_numpy(h)).detach().numpy(), atol=1e-5)
    none = heads.projector(6, 8, 4, 0)
    assert list(projector._onward(none, h)) == ["h"]
    assert torch.equal(none(torch.from_numpy(h)), torch.from_numpy(h))


def test_a_method_comes_back_with_its_projector(lab: _lab.Lab, paths: Paths) -> None:
    folder = paths.root / "shards"
    first = lab.training(folder, "simclr", 0, layers=2)
    h = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    with Reporter("test") as report:
        own = _trained.with_budget(first.cfg, folder)
        trained: Any = train.fit(own, folder, paths.root / "other", report)
    expected = _lab.through(trained.projector, h)
    np.testing.assert_array_equal(_lab.through(first.method.projector, h), expected)
    assert not np.allclose(
        _lab.through(lab.training(folder, "simclr", 1).method.projector, h), expected
    )


def test_history_is_the_training_itself(lab: _lab.Lab, paths: Paths) -> None:
    training = lab.training(paths.root / "shards", "simclr", 0)

    def look(method: Any) -> dict[str, float]:
        method.eval()
        torch.rand(3)  # a look may draw: training must not notice
        return {k: float(v.double().sum()) for k, v in method.encoder.state_dict().items()}

    seen = _history.follow(training, (0.0, 0.5, 1.0), look)
    assert list(seen) == [0.0, 0.5, 1.0]
    sums = {k: float(v.double().sum()) for k, v in training.encoder.state_dict().items()}
    start = _trained.untrained(lab.cfg, 0).state_dict()
    assert seen[1.0] == sums
    assert seen[0.0] == {k: float(v.double().sum()) for k, v in start.items()}
    assert seen[0.5] not in (seen[0.0], seen[1.0])


def test_tau_is_kendalls_and_turned_where_less_is_better() -> None:
    rows = pd.DataFrame({"knn": [0.1, 0.2, 0.3, 0.4], "rankme": [1.0, 3.0, 2.0, 4.0]})
    rows["alignment"] = -rows["rankme"]
    assert label_free.kendall(rows, "rankme") == pytest.approx(4 / 6)  # one of six pairs is turned
    assert label_free.kendall(rows, "alignment") == pytest.approx(4 / 6)
    assert math.isnan(label_free.kendall(rows.assign(rankme=1.0), "rankme"))
    rng = np.random.default_rng(0)
    for _ in range(20):  # with ties
        drawn = pd.DataFrame({k: rng.integers(0, 6, 12).astype(float) for k in ("knn", "lidar")})
        expected = stats.kendalltau(drawn["lidar"], drawn["knn"]).statistic
        assert label_free.kendall(drawn, "lidar") == pytest.approx(expected)
    assert label_free.regret(rows, "rankme") == pytest.approx(0)
    worst = rows.assign(alignment=[0.0, 1.0, 2.0, 3.0])  # puts the first one first
    assert label_free.regret(worst, "alignment") == pytest.approx(0.3)
    two = pd.concat([rows.assign(seed=s) for s in (0, 1)])
    low, high = label_free.spread(two, "rankme", 50)
    assert -1 <= low <= label_free.kendall(rows, "rankme") <= high <= 1 + 1e-9
