"""kNN over faiss, few-shot and calibration against scikit-learn, closed forms and simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from test_evaluate import FAST, RNG, blobs, made, value

from ssl_core.config import Evaluate
from ssl_core.evaluate import _calibration, _common, _head, few_shot, knn, linear
from ssl_core.types import Embeddings

# ---- kNN ---------------------------------------------------------------------------------------


def all_pairs(train: Embeddings, features: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """The vote from the whole matrix of cosines."""
    gallery, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (train.features.astype(float), features.astype(float))
    )
    cosine = queries @ gallery.T
    out = np.zeros((len(features), len(train.classes)))
    for i, row in enumerate(cosine):
        for j in np.argsort(-row)[:k]:
            out[i, train.labels[j]] += np.exp((row[j] - 1) / temperature)
    return out


@pytest.mark.parametrize("k", [1, 10, 100])
def test_faiss_finds_the_neighbours_of_all_pairs(k: int) -> None:
    train, test = blobs(300, 0, spread=2.0), blobs(70, 1, spread=2.0)
    want = all_pairs(train, test.features, k, 0.07)
    np.testing.assert_allclose(knn.votes(train, test.features, k), want, rtol=1e-3, atol=1e-6)


def test_zero_rows_and_no_rows_are_no_error() -> None:
    train, test = blobs(30, 0), blobs(5, 1)
    blank = replace(train, features=np.zeros_like(train.features))
    assert np.isfinite(knn.votes(blank, test.features)).all()
    assert knn.votes(train, test.features[:0]).shape == (0, 5)


def test_an_inverted_file_misses_little(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(3000, 0, spread=2.0), blobs(300, 1, spread=2.0)
    _, exact = knn.search(train, test.features, 20)
    monkeypatch.setattr(knn, "EXACT_UP_TO", 1000)
    _, found = knn.search(train, test.features, 20)
    shared = [len(set(a) & set(b)) / 20 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shared) > 0.85
    monkeypatch.setattr(knn, "PROBES", 1)
    assert np.isfinite(knn.votes(train, test.features, 500)).all()  # fewer than asked for


def test_the_sweep_is_one_search_and_many_votes() -> None:
    train, test = blobs(200, 0, spread=3.0), blobs(100, 1, spread=3.0, prefix="t")
    rows = knn.run(train, test, Evaluate(bootstrap=20, neighbours=(1, 20, 150)))
    for k in (1, 20, 150):
        alone = knn.votes(train, test.features, k).argmax(1)
        assert value(rows, f"neighbours:{k}") == pytest.approx((alone == test.labels).mean())
    assert value(rows, "neighbours:20") == value(rows)
    assert value(rows, "neighbours:1") != value(rows, "neighbours:150")
    none = knn.run(train, test, Evaluate(bootstrap=20, neighbours=()))
    assert not [r for r in none if r["slice"].startswith("neighbours")]


@pytest.mark.parametrize("per_group", [1, 3])
def test_left_out_is_scikit_learns_leave_one_group_out(per_group: int) -> None:
    e = blobs(120, 0, spread=2.0)
    e = replace(e, groups=np.array([f"g{i // per_group}" for i in range(120)]))

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / knn.TEMPERATURE)

    share = knn.left_out(e, 10)
    share /= share.sum(axis=1, keepdims=True)
    for rest, mine in LeaveOneGroupOut().split(e.features, e.labels, e.groups):
        oracle = KNeighborsClassifier(10, weights=weights, metric="cosine", algorithm="brute")
        oracle.fit(e.features[rest], e.labels[rest])
        want = oracle.predict_proba(e.features[mine])
        np.testing.assert_allclose(share[mine][:, oracle.classes_], want, atol=1e-3)


def test_left_out_never_meets_itself_or_its_copies() -> None:
    """Each object has three equal pictures and a label of its own: nobody else can know it."""
    x = np.repeat(RNG(0).normal(size=(40, 6)), 3, axis=0)
    e = made(x, np.repeat(np.arange(40), 3), 40, per_group=3)
    assert (knn.left_out(e).argmax(1) != e.labels).all()
    alone = replace(e, groups=e.sha256)  # if copies count as others they are found
    assert (knn.left_out(alone, 2).argmax(1) == e.labels).all()


# ---- few-shot ----------------------------------------------------------------------------------


def test_shots_are_of_different_groups_and_each_group_is_equally_likely() -> None:
    # Class 0: one group of 30 pictures and three single ones; class 1: two groups.
    labels = np.array([0] * 33 + [1] * 4)
    groups = np.array(["big"] * 30 + ["a", "b", "c"] + ["d", "d", "e", "e"])
    e = replace(made(np.zeros((37, 2)), labels, 2), groups=groups)
    rng, seen = RNG(0), Counter()
    for _ in range(2000):
        rows = few_shot.choose(e, 1, rng)
        assert sorted(labels[rows]) == [0, 1]
        seen.update(groups[rows])
    for group in ("big", "a", "b", "c"):
        assert 0.2 < seen[group] / 2000 < 0.3
    for _ in range(20):
        rows = few_shot.choose(e, 3, rng)
        assert Counter(labels[rows]) == {0: 3, 1: 2}  # no more than there are groups
        assert len(set(groups[rows])) == 5


def test_the_nearest_mean_is_scikit_learns_on_one_sphere() -> None:
    train, test = blobs(100, 0, spread=3.0), blobs(200, 1, spread=3.0)
    x, y = (_common.unit(e.features) for e in (train, test))
    oracle = NearestCentroid().fit(x, train.labels)
    oracle.centroids_ = _common.unit(oracle.centroids_)  # then distance and cosine agree
    want = oracle.predict(y)
    assert (few_shot.nearest_mean(x, train.labels, y) == want).mean() > 0.99
    assert 0.3 < (want == test.labels).mean() < 0.99


def test_one_shot_is_the_nearest_neighbour() -> None:
    train, test = blobs(200, 0, spread=2.0), blobs(50, 1, spread=2.0)
    rows = few_shot.choose(train, 1, RNG(0))
    x, y = _common.unit(train.features[rows]), _common.unit(test.features)
    oracle = KNeighborsClassifier(1, metric="cosine").fit(x, train.labels[rows])
    found = few_shot.nearest_mean(x, train.labels[rows], y)
    np.testing.assert_array_equal(found, oracle.predict(y))


@pytest.mark.parametrize("n", [8, 60], ids=["fewer rows than dimensions", "more"])
def test_the_logistic_probe_is_scikit_learns(n: int) -> None:
    train, test = blobs(n, 3, spread=1.5), blobs(300, 1, spread=1.5)
    x, y = (_common.unit(e.features) for e in (train, test))
    oracle = LogisticRegression(C=few_shot.STRENGTH, max_iter=2000, tol=1e-8)
    want = oracle.fit(x, train.labels).predict(y)
    assert (few_shot.logistic(x, train.labels, y) == want).mean() > 0.99


def test_more_shots_are_better_and_the_first_is_the_main_number() -> None:
    train, test = blobs(600, 0, spread=1.5), blobs(300, 1, spread=1.5, prefix="t")
    rows = few_shot.run(train, test, Evaluate(bootstrap=50, shots=(5, 1, 40)))
    assert rows[0]["slice"] == "all"
    assert rows[0]["value"] == value(rows, "shots:5")
    assert value(rows, "shots:1") + 0.05 < value(rows, "shots:5") < value(rows, "shots:40")
    assert value(rows, "shots:40", "logistic_accuracy") > value(rows, "shots:1")
    for row in rows:
        assert row["low"] < row["value"] < row["high"]
    again = few_shot.run(train, test, Evaluate(bootstrap=50, shots=(5, 1, 40)))
    assert rows == again


def test_few_shot_of_noise_is_chance() -> None:
    rng = RNG(3)
    train = made(rng.normal(size=(400, 20)), rng.integers(0, 4, 400), 4)
    test = made(rng.normal(size=(800, 20)), rng.integers(0, 4, 800), 4, prefix="t")
    for row in few_shot.run(train, test, FAST):
        assert 0.2 < row["value"] < 0.3


def test_few_shot_intervals_hold_choices_and_images() -> None:
    """Each choice of shots has a skill, each test group too: the interval must hold both."""
    rng, covered, runs = RNG(0), 0, 100
    for _ in range(runs):
        skill = rng.normal(0, 0.08, 10)[:, None] + rng.normal(0, 0.2, 30)[None] + 0.5
        chance = np.repeat(skill.clip(0, 1), 2, axis=1)  # two images a group
        right = rng.random(chance.shape) < chance
        _, low, high = few_shot.interval(right, np.repeat(np.arange(30), 2).astype(str), 200)
        covered += low <= 0.5 <= high
    assert covered >= binom.ppf(0.001, runs, 0.92)


def test_without_a_second_choice_or_group_there_is_no_interval() -> None:
    right, groups = np.ones((1, 4), bool), np.array(list("abcd"))
    assert np.isnan(few_shot.interval(right, groups, 20)[1:]).all()
    assert np.isnan(few_shot.interval(np.ones((3, 4), bool), np.array(["a"] * 4), 20)[1:]).all()


# ---- calibration -------------------------------------------------------------------------------


def outputs(n: int, seed: int, sharper: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 4) and labels drawn from them before they were sharpened."""
    rng = RNG(seed)
    logits = rng.normal(size=(n, 4)) * 1.5
    p = _head.softmax(logits)
    labels = (p.cumsum(1) < rng.random((n, 1))).sum(1)
    return _head.softmax(logits * sharper), labels


def test_brier_and_likelihood_are_scikit_learns() -> None:
    p, labels = outputs(500, 0)
    rows = {r["metric"]: r["value"] for r in _calibration.rows("all", p, labels, ids(500), 20)}
    assert rows["nll"] == pytest.approx(log_loss(labels, p))
    want = brier_score_loss(labels, p, labels=range(4), scale_by_half=False)
    assert rows["brier"] == pytest.approx(want)


def ids(n: int) -> np.ndarray:
    return np.arange(n).astype(str)


@pytest.mark.parametrize("n", [7, 15, 500, 503])
def test_ece_is_its_definition(n: int) -> None:
    p, labels = outputs(n, 1, 3.0)
    confidence, right = p.max(1), p.argmax(1) == labels
    order = np.argsort(confidence)
    want, last = 0.0, None
    for part in np.array_split(order, min(15, n)):  # equal mass, up to one image
        want += abs(confidence[part].mean() - right[part].mean()) * len(part) / n
        assert last is None or last <= confidence[part].min()
        last = confidence[part].max()
    (value_, low, high), _ = _calibration.ece(confidence, right, ids(n), 50)
    assert value_ == pytest.approx(want, abs=0.02 if n == 503 else 1e-9)  # bins of 33 or of 34
    assert low <= value_ <= high


def test_ece_closed_forms() -> None:
    sure, groups = np.full(60, 0.9), ids(60)
    right = np.arange(60) < 30
    # Bins of four; each holds right or wrong images only, but two of them, which hold both.
    (value_, *_), _ = _calibration.ece(sure, right, groups, 10)
    full, mixed = 30 // 4, 30 % 4
    by_hand = (full * 4 * 0.1 + abs(4 * 0.9 - mixed) + (30 - 4 + mixed) * 0.9) / 60
    assert value_ == pytest.approx(by_hand)
    (value_, *_), _ = _calibration.ece(np.ones(60), np.ones(60, bool), groups, 10)
    assert value_ == 0


def test_the_floor_is_what_calibrated_heads_show_and_bold_ones_exceed() -> None:
    inside = 0
    for seed in range(60):
        p, labels = outputs(400, seed)
        (value_, *_), (_, low, high) = _calibration.ece(
            p.max(1), p.argmax(1) == labels, ids(400), 10
        )
        inside += low <= value_ <= high
    assert inside >= binom.ppf(0.001, 60, 0.95)
    p, labels = outputs(400, 0, 3.0)
    (value_, low, _), (_, _, high) = _calibration.ece(p.max(1), p.argmax(1) == labels, ids(400), 50)
    assert value_ > low > high
    # One confidence c: 15 bins of m images, each with mean error sqrt(2 c (1 - c) / (pi m)).
    _, (floor, *_) = _calibration.ece(np.full(6000, 0.7), np.ones(6000, bool), ids(6000), 10)
    assert floor == pytest.approx(np.sqrt(2 * 0.7 * 0.3 / (np.pi * 400)), rel=0.03)


def test_ece_intervals_cover_the_expected_value() -> None:
    def one(seed: int) -> tuple[float, float, float]:
        p, labels = outputs(300, seed, 2.0)
        return _calibration.ece(p.max(1), p.argmax(1) == labels, ids(300), 100)[0]

    found = np.array([one(seed) for seed in range(150)])
    expected = found[:, 0].mean()
    covered = ((found[:, 1] <= expected) & (expected <= found[:, 2])).sum()
    assert covered >= binom.ppf(0.001, 150, 0.93)


def test_a_class_the_head_does_not_know_is_an_error_without_likelihood() -> None:
    p = np.array([[0.8, 0.2], [0.6, 0.4]], np.float32)
    rows = {r["metric"]: r for r in _calibration.rows("all", p, np.array([0, -1]), ids(2), 10)}
    assert rows["brier"]["value"] == pytest.approx(((0.04 + 0.04) + (0.36 + 0.16 + 1)) / 2)
    assert rows["nll"]["value"] == pytest.approx(-np.log(0.8))
    assert (rows["brier"]["n"], rows["nll"]["n"]) == (2, 1)
    assert rows["ece"]["value"] == pytest.approx((0.2 + 0.6) / 2)
    empty = _calibration.rows("s", p[:0], np.array([], int), ids(0), 10)
    assert all(np.isnan(r["value"]) and r["n"] == 0 for r in empty)


def test_the_probe_reports_its_calibration_by_source() -> None:
    train = blobs(200, 0, spread=2.0, sources=2)
    test = blobs(100, 1, spread=2.0, sources=2, prefix="t")
    rows = linear.run(train, test, FAST)
    head = linear.fit(train)
    p = head.probabilities(test.features)
    assert value(rows, "all", "nll") == pytest.approx(log_loss(test.labels, p), rel=1e-4)
    mine = test.sources == "s1"
    assert not np.isclose(value(rows, "source:s0", "nll"), value(rows, "source:s1", "nll"))
    want = brier_score_loss(test.labels[mine], p[mine], labels=range(5), scale_by_half=False)
    assert value(rows, "source:s1", "brier") == pytest.approx(want, rel=1e-4)
