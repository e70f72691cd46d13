"""Measures against scikit-learn and closed forms; intervals against simulation; the stage."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ssl_core import embed, plugins
from ssl_core.artifacts import read_json, write_json, write_lineage
from ssl_core.config import Config, Evaluate, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.evaluate import _common, _head, knn, linear, rankme
from ssl_core.report import _results
from ssl_core.stages import evaluate
from ssl_core.types import Embeddings

FAST = Evaluate(bootstrap=50)
RNG = np.random.default_rng


def made(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    sources: int = 1,
    prefix: str = "g",
    per_group: int = 1,
) -> Embeddings:
    """Embeddings whose groups hold ``per_group`` rows; sources take turns."""
    n = np.arange(len(labels))
    return Embeddings(
        np.asarray(features, np.float32),
        np.asarray(labels, np.int64),
        tuple(f"c{i}" for i in range(classes)),
        np.array([f"{prefix}{i}" for i in n], dtype=str),
        np.array([f"{prefix}{i // per_group}" for i in n], dtype=str),
        np.array([f"s{i % sources}" for i in n], dtype=str),
    )


def blobs(
    n: int,
    seed: int,
    classes: int = 5,
    width: int = 12,
    prefix: str = "g",
    spread: float = 1.0,
    sources: int = 1,
) -> Embeddings:
    """Gaussian classes whose centres do not depend on ``seed``; scales differ by dimension."""
    centres = RNG(99).normal(size=(classes, width))
    rng = RNG(seed)
    labels = rng.integers(0, classes, n)
    x = centres[labels] + spread * rng.normal(size=(n, width))
    return made(x * np.linspace(0.1, 9, width) + 3, labels, classes, sources, prefix)


def value(rows: list[dict], slice_: str = "all", metric: str = "accuracy") -> float:
    return next(r["value"] for r in rows if r["slice"] == slice_ and r["metric"] == metric)


def test_the_plug_ins_are_these() -> None:
    names = "alpha_req few_shot knn linear rankme tolerance uniformity"
    assert plugins.names("evaluate") == names.split()
    assert set(Evaluate().measures) <= set(plugins.names("evaluate"))


@pytest.mark.parametrize("name", plugins.names("evaluate"))
def test_rows_have_one_shape(name: str) -> None:
    rows = plugins.load("evaluate", name).run(blobs(80, 0), blobs(40, 1, prefix="t"), FAST)
    assert rows[0]["slice"] == "all"
    for row in rows:
        assert set(row) == {"slice", "metric", "value", "low", "high", "n"}
        assert all(isinstance(row[k], float) for k in ("value", "low", "high"))
    assert len({(r["slice"], r["metric"]) for r in rows}) == len(rows)


# ---- kNN ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 0.5)])
def test_knn_is_scikit_learns_with_dinos_weights(k: int, temperature: float) -> None:
    train, test = blobs(300, 0, spread=2.0), blobs(200, 1, spread=2.0)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / temperature)  # cosine distance is 1 - cosine

    oracle = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    oracle.fit(train.features, train.labels)
    votes = knn.votes(train, test.features, k, temperature)
    share = votes / votes.sum(1, keepdims=True)
    np.testing.assert_allclose(share, oracle.predict_proba(test.features), atol=1e-4)
    accuracy = (share.argmax(1) == test.labels).mean()
    assert 0.3 < accuracy < 1  # a case that is neither hopeless nor trivial


def test_knn_with_all_neighbours_and_no_temperature_is_the_prior() -> None:
    train, test = blobs(90, 0), blobs(10, 1)
    votes = knn.votes(train, test.features, len(train), 1e6)
    np.testing.assert_allclose(votes[0], np.bincount(train.labels), rtol=1e-4)


def test_knn_in_chunks_is_knn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(100, 0), blobs(53, 1)
    whole = knn.votes(train, test.features)
    monkeypatch.setattr(knn, "CHUNK", 10)
    np.testing.assert_allclose(knn.votes(train, test.features), whole, rtol=1e-4)


# ---- linear probe ------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_linear_finds_the_minimum_of_scikit_learn(strength: float) -> None:
    train, test = blobs(400, 0, spread=1.5), blobs(200, 1, spread=1.5)
    scaler = StandardScaler().fit(train.features)
    oracle = LogisticRegression(C=strength, max_iter=2000, tol=1e-8)
    oracle.fit(scaler.transform(train.features), train.labels)
    basis = linear.space(train.features)
    start = np.zeros((5, 13), np.float32)
    weight = linear.solve(basis.into(train.features), train.labels, basis.energy, strength, start)
    head = _head.Head(*basis.back(weight), train.classes, 1.0, {})
    want = oracle.predict_proba(scaler.transform(test.features))
    np.testing.assert_allclose(head.probabilities(test.features), want, atol=0.01)


def test_the_probe_reaches_what_the_best_oracle_reaches() -> None:
    train, test = blobs(600, 0, spread=2.0), blobs(600, 1, spread=2.0, prefix="t")
    scaler = StandardScaler().fit(train.features)
    scores = []
    for strength in linear.STRENGTHS:
        oracle = LogisticRegression(C=strength, max_iter=1000)
        oracle.fit(scaler.transform(train.features), train.labels)
        scores.append(oracle.score(scaler.transform(test.features), test.labels))
    assert max(scores) - 0.03 < value(linear.run(train, test, FAST)) <= max(scores) + 0.01


@pytest.mark.parametrize("seed", range(6))
def test_no_better_penalty_is_missed_on_weak_features(seed: int) -> None:
    """Near chance accuracy jumps about: the search must not end at its first fall."""
    rng = RNG(seed)
    labels = rng.integers(0, 10, 500)
    weak = 0.5 * np.eye(10)[labels] @ rng.normal(size=(10, 40)) * np.geomspace(1, 0.01, 40)
    weak = (weak + rng.normal(size=(500, 40))).astype(np.float32)
    train = made(weak, labels, classes=10)
    out = linear._held_out(train.groups)
    scaler = StandardScaler().fit(weak[~out])
    scores = {}
    for strength in linear.STRENGTHS:
        oracle = LogisticRegression(C=strength, max_iter=2000)
        oracle.fit(scaler.transform(weak[~out]), labels[~out])
        scores[strength] = oracle.score(scaler.transform(weak[out]), labels[out])
    chosen = linear.choose(train).about["strength"]
    assert scores[chosen] >= max(scores.values()) - 0.02


def test_standardisation_makes_units_irrelevant() -> None:
    train, test = blobs(300, 0, spread=2.0), blobs(200, 1, spread=2.0)
    units = np.float32(10.0) ** RNG(0).integers(-2, 3, 12)
    turned = [replace(e, features=e.features * units - 5) for e in (train, test)]
    plain = linear.predict(train, test.features)
    assert (linear.predict(turned[0], turned[1].features) == plain).mean() > 0.98


def test_a_constant_dimension_does_no_harm() -> None:
    train, test = blobs(200, 0), blobs(100, 1)
    dead = [np.c_[e.features, np.full(len(e), 7, np.float32)] for e in (train, test)]
    found = linear.predict(replace(train, features=dead[0]), dead[1])
    assert (found == linear.predict(train, test.features)).mean() > 0.98


def test_random_labels_are_found_at_chance() -> None:
    rng = RNG(3)
    train = made(rng.normal(size=(800, 20)), rng.integers(0, 4, 800), 4)
    test = made(rng.normal(size=(800, 20)), rng.integers(0, 4, 800), 4, prefix="t")
    low, high = binom.interval(0.999, 800, 0.25)
    for module in (knn, linear):
        assert low <= 800 * value(module.run(train, test, FAST)) <= high


def test_test_labels_change_no_prediction_and_no_choice() -> None:
    train, test = blobs(200, 0), blobs(100, 1, prefix="t")
    wrong = replace(test, labels=(test.labels + 1) % 5)
    for module in (knn, linear):
        right, none = (value(module.run(train, t, FAST)) for t in (test, wrong))
        assert right > 0.8  # so no image that is right stays right when all labels move on
        assert none <= 1 - right + 1e-9


def test_the_penalty_is_chosen_on_whole_groups() -> None:
    groups = np.repeat([f"g{i}" for i in range(40)], 5)
    out = linear._held_out(groups)
    assert all(len(set(out[groups == g])) == 1 for g in np.unique(groups))
    assert out.sum() == 40


def test_confidence_is_calibrated() -> None:
    rng = RNG(0)
    labels = rng.integers(0, 3, 5000)
    x = np.eye(3)[labels] * 1.5 + rng.normal(size=(5000, 3))
    noisy = np.c_[x, rng.normal(size=(5000, 100))]  # room to overfit
    train = made(noisy[:1000], labels[:1000], 3)
    head = linear.fit(train)
    predicted, confidence = head.predict(noisy[1000:].astype(np.float32))
    right = predicted == np.array(head.classes)[labels[1000:]]
    assert abs(confidence.mean() - right.mean()) < 0.06


def test_temperature_mends_logits_that_are_too_bold() -> None:
    rng = RNG(0)
    logits = rng.normal(size=(3000, 4)).astype(np.float32)
    p = _head.softmax(logits)
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in p.astype(float)])
    assert linear.temperature(5 * logits, labels) == pytest.approx(5, rel=0.1)


def test_too_few_groups_fall_back() -> None:
    e = replace(blobs(30, 0), groups=np.array(["one"] * 30))
    assert linear.fit(e).about["strength"] == linear.FALLBACK


def test_a_head_survives_the_disk_and_refuses_damage(tmp_path: Path) -> None:
    train = blobs(100, 0)
    head = linear.fit(train)
    _head.save(head, tmp_path)
    back = _head.load(tmp_path)
    np.testing.assert_array_equal(
        back.probabilities(train.features), head.probabilities(train.features)
    )
    assert back.classes == head.classes
    assert back.about == head.about
    first = (tmp_path / _head.WEIGHTS).read_bytes()
    _head.save(head, tmp_path)
    assert (tmp_path / _head.WEIGHTS).read_bytes() == first
    with pytest.raises(HeadwaterError, match="do not fit a head for 12"):
        back.logits(train.features[:, :5])
    (tmp_path / _head.WEIGHTS).write_bytes(first[:-4] + b"\0\0\0\0")
    with pytest.raises(HeadwaterError, match="sha256"):
        _head.load(tmp_path)
    (tmp_path / _head.META).unlink()
    with pytest.raises(HeadwaterError, match="holds no"):
        _head.load(tmp_path)


# ---- RankMe ------------------------------------------------------------------------------------


def test_rankme_closed_forms() -> None:
    q, _ = np.linalg.qr(RNG(0).normal(size=(200, 16)))
    assert rankme.rankme(q) == pytest.approx(16, abs=1e-3)
    assert rankme.rankme(np.outer(np.arange(1, 50), np.ones(8))) == pytest.approx(1, abs=1e-4)
    # What the paper's epsilon adds shows where many singular values are zero.
    flat = np.exp(-(1 + 1e-7) * np.log1p(1e-7) - 399 * 1e-7 * np.log(1e-7))
    assert rankme.rankme(np.ones((500, 400))) == pytest.approx(flat, abs=1e-6)
    # Two equal singular values and one half as large: shares 0.4, 0.4, 0.2.
    p = np.array([0.4, 0.4, 0.2]) + rankme.EPSILON
    want = np.exp(-(p * np.log(p)).sum())
    assert rankme.rankme(q[:, :3] * [2, 2, 1]) == pytest.approx(want, rel=1e-6)
    assert np.isnan(rankme.rankme(np.zeros((5, 3))))


def test_rankme_ignores_scale_and_rotation_and_is_not_centred() -> None:
    x = RNG(1).normal(size=(100, 10)) * np.linspace(1, 5, 10)
    turn, _ = np.linalg.qr(RNG(2).normal(size=(10, 10)))
    assert rankme.rankme(7 * x @ turn) == pytest.approx(rankme.rankme(x), rel=1e-5)
    assert 1 <= rankme.rankme(x) <= 10
    assert rankme.rankme(x + 1000) < 1.1  # one direction dominates: centring would hide it


# ---- slices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [4, 9], ids=["known", "classes that are not there, too"])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_and_macro_f1_are_scikit_learns(named: int) -> None:
    rng = RNG(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, named, 200)
    found = _common.shares(predicted, labels, np.arange(200).astype(str), 20)
    assert found["balanced_accuracy"][0] == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )
    f1 = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert found["macro_f1"][0] == pytest.approx(f1)
    assert found["accuracy"][0] == pytest.approx((labels == predicted).mean())


def test_intervals_are_those_of_resampled_images() -> None:
    """The sums over groups against scikit-learn on every drawn set of rows."""
    rng = RNG(1)
    labels, predicted = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    groups = np.array([f"g{i // 2}" for i in range(40)])
    found = _common.shares(predicted, labels, groups, 60)
    drawn = RNG(_common.SEED).integers(0, 20, (60, 20))
    _, code = np.unique(groups, return_inverse=True)
    scores = []
    for chosen in drawn:
        rows = np.concatenate([np.flatnonzero(code == g) for g in chosen])
        true, told = labels[rows], predicted[rows]
        f1 = f1_score(true, told, labels=np.unique(true), average="macro")
        scores.append((np.mean(true == told), balanced_accuracy_score(true, told), f1))
    low, high = np.quantile(scores, [0.025, 0.975], axis=0)
    for i, metric in enumerate(_common.METRICS):
        assert found[metric][1:] == pytest.approx((low[i], high[i]))


def test_the_worst_source_is_the_smallest_and_its_interval_holds() -> None:
    rng, covered, runs = RNG(2), 0, 100
    rates = np.array([0.5, 0.55, 0.6, 0.9])
    for _ in range(runs):
        source = np.repeat(np.arange(4), 60)
        test = made(np.zeros((240, 1)), np.ones(240, int), 2)
        test = replace(test, sources=np.array([f"s{i}" for i in source]))
        named = (rng.random(240) < rates[source]).astype(np.int64)
        rows = {r["metric"]: r for r in _common.worst(test, named, 200)}
        assert rows["accuracy"]["value"] == min(named[source == i].mean() for i in range(4))
        assert rows["accuracy"]["n"] == 60
        covered += rows["accuracy"]["low"] <= 0.5 <= rows["accuracy"]["high"]
    assert covered >= binom.ppf(0.001, runs, 0.95)


def test_a_source_with_few_images_is_not_the_worst() -> None:
    test = made(np.zeros((70, 1)), np.ones(70, int), 2)
    sources = np.array(["big"] * 30 + ["other"] * 30 + ["small"] * 10)
    named = (sources != "small").astype(np.int64)
    rows = _common.worst(replace(test, sources=sources), named, 20)
    assert {r["value"] for r in rows} == {1.0}
    assert not _common.worst(replace(test, sources=np.array(["one"] * 70)), named, 20)


def test_rows_without_a_label_take_no_part() -> None:
    train, test = blobs(100, 0), blobs(50, 1, prefix="t")
    extra = replace(blobs(30, 2, prefix="u"), labels=np.full(30, -1))
    both = [
        Embeddings(
            *(
                e.classes if f == "classes" else np.concatenate([getattr(e, f), getattr(extra, f)])
                for f in ("features", "labels", "classes", "sha256", "groups", "sources")
            )
        )
        for e in (train, test)
    ]
    for module in (knn, linear):
        tables = [pd.DataFrame(module.run(*pair, FAST)) for pair in (both, (train, test))]
        pd.testing.assert_frame_equal(*tables)


def test_tail_slices_count_labelled_training_images() -> None:
    labels = np.repeat([0, 1, 2], [70, 60, 19])
    train = made(RNG(0).normal(size=(149, 4)), labels, 4)
    test = made(np.zeros((5, 4)), np.array([0, 1, 2, 2, 3]), 4, prefix="t")
    found = {k: v.tolist() for k, v in _common.tail(train, test, Evaluate(many=60, few=20)).items()}
    assert found == {
        "tail:many": [True, False, False, False, False],
        "tail:medium": [False, True, False, False, False],
        "tail:few": [False, False, True, True, True],  # the last class was never seen
    }


def test_an_empty_slice_is_nan_and_not_zero() -> None:
    rows = knn.run(blobs(500, 0), blobs(50, 1, prefix="t"), FAST)
    few = next(r for r in rows if r["slice"] == "tail:few" and r["metric"] == "balanced_accuracy")
    assert few["n"] == 0
    assert np.isnan([few["value"], few["low"], few["high"]]).all()


@pytest.mark.parametrize("module", [knn, linear], ids=["knn", "linear"])
def test_unseen_is_fitted_on_the_other_sources(module: object) -> None:
    train, test = blobs(240, 0, sources=3), blobs(120, 1, sources=3, prefix="t")
    # In source s1 the labels mean something else: who trained on it knows, others cannot.
    moved = [
        replace(
            e,
            labels=np.where(e.sources == "s1", (e.labels + 1) % 5, e.labels),
            features=e.features + np.where(e.sources == "s1", 500.0, 0.0)[:, None].astype("f4"),
        )
        for e in (train, test)
    ]
    rows = module.run(*moved, FAST)  # type: ignore[attr-defined]
    names = {r["slice"] for r in rows if r["slice"].startswith("unseen:")}
    assert names == {"unseen:s0", "unseen:s1", "unseen:s2"}
    assert value(rows, "unseen:s1") < 0.35
    others = _common.take(moved[0], moved[0].sources != "s1")
    mine = _common.take(moved[1], moved[1].sources == "s1")
    alone = module.run(others, mine, FAST)  # type: ignore[attr-defined]
    assert value(rows, "unseen:s1") == value(alone)


def test_one_source_has_nothing_unseen_and_no_labels_are_refused() -> None:
    train, test = blobs(60, 0), blobs(30, 1, prefix="t")
    assert not [r for r in knn.run(train, test, FAST) if r["slice"].startswith("unseen")]
    blind = replace(train, labels=np.full(60, -1))
    for module in (knn, linear):
        with pytest.raises(HeadwaterError, match="fewer than two classes"):
            module.run(blind, test, FAST)
    assert rankme.run(blind, test, FAST)[0]["n"] == 30


# ---- intervals ---------------------------------------------------------------------------------


def test_resample_draws_groups_with_replacement() -> None:
    totals = np.array([[1.0, 0], [0, 10], [100, 1000]])
    drawn = _common.resample(totals, 400, 0)
    possible = {tuple(totals[list(c)].sum(0)) for c in itertools.product(range(3), repeat=3)}
    assert {tuple(row) for row in drawn} <= possible
    np.testing.assert_allclose(drawn.mean(0), totals.sum(0), rtol=0.1)


def test_chunks_do_not_repeat_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = RNG(0).normal(size=(50, 1))
    monkeypatch.setattr(_common, "CELLS", 500)
    assert len(np.unique(_common.resample(totals, 95, 0))) == 95


def test_copies_within_groups_are_no_evidence() -> None:
    rng = RNG(0)
    hit = rng.random(60) < 0.6
    alone = _common.shares(hit.astype(int), np.ones(60, int), np.arange(60).astype(str), 500)
    copied = np.repeat(hit, 10).astype(int)
    groups = np.repeat(np.arange(60), 10).astype(str)
    grouped = _common.shares(copied, np.ones(600, int), groups, 500)
    assert grouped["accuracy"] == pytest.approx(alone["accuracy"])
    naive = _common.shares(copied, np.ones(600, int), np.arange(600).astype(str), 500)
    width = [g["accuracy"][2] - g["accuracy"][1] for g in (grouped, naive)]
    assert width[0] > 2.5 * width[1]


def test_accuracy_intervals_cover_the_truth_with_grouped_images() -> None:
    rng, covered, runs = RNG(0), 0, 200
    for _ in range(runs):
        skill = rng.beta(2, 2, 60)  # differs by group; the truth is one half
        hit = (rng.random((60, 4)) < skill[:, None]).ravel().astype(int)
        groups = np.repeat(np.arange(60), 4).astype(str)
        _, low, high = _common.shares(hit, np.ones(240, int), groups, 200)["accuracy"]
        covered += low <= 0.5 <= high
    assert binom.ppf(0.001, runs, 0.93) <= covered


def test_paired_difference_keeps_its_level_and_finds_a_gain() -> None:
    rng, runs, groups = RNG(1), 300, np.repeat(np.arange(60), 3).astype(str)
    false = found = 0
    for _ in range(runs):
        gain = (rng.normal(0, 0.3, 60)[:, None] + rng.normal(0, 0.3, (60, 3))).ravel()
        false += _common.difference(gain, groups, 200)[1] > 0
        found += _common.difference(gain + 0.25, groups, 200)[1] > 0
    assert false <= binom.ppf(0.999, runs, 0.035)  # nominal 2.5 %, a little more by bootstrap
    assert found > 0.9 * runs


def test_a_higher_level_is_wider_and_equal_input_equal_output() -> None:
    gain, groups = RNG(0).normal(size=100), np.arange(100).astype(str)
    narrow, wide = (_common.difference(gain, groups, 500, level) for level in (0.9, 0.99))
    assert wide[1] < narrow[1] < gain.mean() < narrow[2] < wide[2]
    assert narrow == _common.difference(gain, groups, 500, 0.9)


def test_without_a_second_group_there_is_no_interval() -> None:
    value_, low, high = _common.difference([1.0, 0.0], np.array(["a", "a"]), 50)
    assert value_ == 0.5
    assert np.isnan(low)
    assert np.isnan(high)
    assert np.isnan(_common.difference([], np.array([], str), 50)).all()


# ---- the stage ---------------------------------------------------------------------------------


def write_curation(paths: Paths, features: np.ndarray, keys: pd.Series) -> None:
    """A manifest in another order, with a file the shards lack and one listed twice; the seed's
    features are the encoder's, turned round."""
    order = RNG(7).permutation(len(keys))
    names = pd.DataFrame({"sha256": [*keys[order], "dropped", keys[order[0]]]})
    extra = np.zeros((2, features.shape[1]), np.float32)
    for folder in (paths.manifest, paths.seed_embeddings):
        folder.mkdir(parents=True)
    names.to_parquet(paths.manifest / "manifest.parquet")
    np.save(paths.seed_embeddings / "embeddings.npy", np.concatenate([-features[order], extra]))
    write_lineage(paths.manifest, "manifest", {}, {}, {})
    write_lineage(paths.seed_embeddings, "seed_embed", {}, {"manifest": paths.manifest}, {})


@pytest.fixture
def products(tmp_path: Path) -> Paths:
    """Embeddings of an imagined encoder and its baselines; no image is read."""
    paths = Paths(tmp_path)
    train, test = blobs(150, 0, sources=2), blobs(60, 1, sources=2, prefix="t")
    features = np.concatenate([train.features, test.features])
    table = pd.DataFrame(
        {
            "split": ["train"] * 150 + ["test"] * 60,
            "key": [*train.sha256, *test.sha256],
            "label": [f"c{i}" for i in [*train.labels, *test.labels]],
            "group": [*train.groups, *test.groups],
            "source": [*train.sources, *test.sources],
        }
    )
    table.loc[[3, 155], "label"] = None
    write_curation(paths, features, table["key"])
    for folder in (paths.shards, paths.pretrain, paths.embeddings):
        folder.mkdir(parents=True)
    for folder, inputs in (
        (paths.shards, {}),
        (paths.pretrain, {"shards": paths.shards}),
        (paths.embeddings, {"shards": paths.shards, "pretrain": paths.pretrain}),
    ):
        if folder == paths.embeddings:
            embed.save(folder, features, table, [f"c{i}" for i in range(5)])
            noise = RNG(5).normal(size=features.shape).astype(np.float32)
            embed.save_array(folder / "random.npy", noise)
        write_lineage(folder, folder.name, {}, inputs, {})
    return paths


def test_the_stage_writes_what_the_report_reads(products: Paths) -> None:
    cfg = Config.model_validate({"evaluate": {"bootstrap": 20, "baselines": ["random"]}})
    counts = evaluate.run(cfg, products)
    assert (counts["train"], counts["test"], counts["classes"]) == (150, 60, 5)
    table = pd.read_parquet(products.evaluation / "results.parquet")
    assert list(table.columns) == evaluate.COLUMNS
    assert set(table["encoder"]) == {"pretrained", "random"}
    metrics = read_json(products.evaluation / "metrics.json")
    # 12 dimensions fix no slope of a spectrum: alpha-ReQ is NaN, which JSON lacks.
    assert set(metrics["pretrained"]) == set(Evaluate().measures) - {"alpha_req"}
    main = table[(table["slice"] == "all") & (table["encoder"] == "random")].set_index("measure")
    for measure, metric in (("linear", "accuracy"), ("rankme", "rankme")):
        rows = main.loc[measure].set_index("metric")
        assert metrics["random"][measure] == rows.loc[metric, "value"]
    assert metrics["pretrained"]["linear"] > metrics["random"]["linear"] + 0.3
    told = pd.read_parquet(products.evaluation / "test_predictions.parquet")
    assert len(told) == 60
    assert told["correct"].isna().sum() == told["label"].isna().sum() == 1
    known = told.dropna(subset="label")
    assert (known["correct"] == (known["label"] == known["prediction"])).all()
    assert known["correct"].mean() == pytest.approx(metrics["pretrained"]["linear"])
    rest = pd.read_parquet(products.evaluation / "baseline_predictions.parquet")
    assert set(rest["encoder"]) == {"random"}
    assert set(rest["sha256"]) == set(told["sha256"])
    section = _results.evaluation(products)
    assert "s0, left out" in section["sources"]
    assert "worst source" in section["sources"]
    assert "medium" in section["frequency"]
    assert not [c for c in section["columns"] if "noise" in c or "ece" in c]


def test_the_saved_head_is_the_one_that_was_measured(products: Paths) -> None:
    evaluate.run(Config.model_validate({"evaluate": {"bootstrap": 5, "baselines": []}}), products)
    test = embed.load(products.embeddings, "test")
    names, confidence = _head.load(products.evaluation).predict(test.features)
    told = pd.read_parquet(products.evaluation / "test_predictions.parquet")
    assert told["prediction"].tolist() == names.tolist()
    np.testing.assert_allclose(told["confidence"], confidence, rtol=1e-5)
    first = {f.name: f.read_bytes() for f in products.evaluation.iterdir()}
    evaluate.run(Config.model_validate({"evaluate": {"bootstrap": 5, "baselines": []}}), products)
    assert {f.name: f.read_bytes() for f in products.evaluation.iterdir()} == first


def test_the_seed_baseline_is_found_by_content(products: Paths) -> None:
    whole = embed.load(products.embeddings, None)
    found = evaluate.seed_features(products, whole)
    np.testing.assert_array_equal(found, -whole.features)
    cfg = Config.model_validate({"evaluate": {"bootstrap": 5, "baselines": ["seed"]}})
    metrics = evaluate.run(cfg, products)
    assert metrics["seed"]["knn"] == metrics["pretrained"]["knn"]  # mirrored: the same neighbours
    stranger = replace(whole, sha256=np.r_[whole.sha256[:-1], ["stranger"]])
    with pytest.raises(HeadwaterError, match="does not hold every image"):
        evaluate.seed_features(products, stranger)


def test_embeddings_of_another_encoder_are_refused(products: Paths) -> None:
    write_json(products.pretrain / "lineage.json", {"another": "run"})
    with pytest.raises(HeadwaterError, match="another version of pretrain"):
        evaluate.run(Config(), products)


def test_unknown_baselines_are_refused(products: Paths) -> None:
    with pytest.raises(HeadwaterError, match="'magic': is not one of random, pixels, seed"):
        embed.baseline("magic", None, {}, 0)  # type: ignore[arg-type]
    with pytest.raises(HeadwaterError, match="'magic': is not among the features"):
        evaluate.run(Config.model_validate({"evaluate": {"baselines": ["magic"]}}), products)
