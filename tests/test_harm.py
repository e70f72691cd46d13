"""Guesses without labels against closed forms; intervals and proofs against exact expectations."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest, fisher_exact

from ssl_core import plugins
from ssl_core.errors import HeadwaterError
from ssl_core.harm import _accuracy, _common, _request, _sequence, atc, cbpe, doc
from ssl_core.harm._accuracy import Counted
from ssl_core.harm._common import Outputs

RNG = np.random.default_rng
NAMES = ("atc", "average_confidence", "cbpe", "doc")


def outputs(confidence: Any, correct: Any = None, groups: Any = None) -> Outputs:
    sure = np.asarray(confidence, np.float64)
    names = np.arange(len(sure)).astype(str) if groups is None else np.asarray(groups)
    return Outputs(sure, names, None if correct is None else np.asarray(correct, np.float64))


def calibrated(a: float, b: float, n: int, seed: int) -> Outputs:
    rng = RNG(seed)
    sure = rng.beta(a, b, n)
    return outputs(sure, rng.random(n) < sure)


# ---- without labels ----------------------------------------------------------------------------


def test_the_estimators_are_these() -> None:
    assert plugins.names("harm") == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "want"), [("cbpe", 0.5), ("doc", 0.5), ("average_confidence", 0.5), ("atc", 0.307)]
)
def test_a_calibrated_model_whose_confidence_falls(name: str, want: float) -> None:
    """Beta(5, 2) -> Beta(2, 2): the truth is 1/2, and ATC is far off (docs: methods 8.2)."""
    known, now = calibrated(5, 2, 100_000, 0), calibrated(2, 2, 100_000, 1)
    assert now.correct is not None
    assert now.correct.mean() == pytest.approx(0.5, abs=0.005)
    assert plugins.load("harm", name).estimate(known, now) == pytest.approx(want, abs=0.006)


@pytest.mark.parametrize("right", [0.0, 0.37, 0.9, 1.0])
def test_atc_on_its_own_source_is_the_accuracy(right: float) -> None:
    n = 200
    source = outputs(RNG(0).random(n), RNG(1).permutation(n) < right * n)
    assert source.correct is not None
    assert atc.estimate(source, source) == pytest.approx(source.correct.mean(), abs=1 / n)


def test_doc_moves_by_the_fall_in_confidence_and_stays_a_share() -> None:
    known = outputs([0.9, 0.7], [1, 0])
    assert doc.estimate(known, outputs([0.6, 0.6])) == pytest.approx(0.5 - 0.2)
    assert doc.estimate(known, outputs([0.0])) == 0
    assert doc.estimate(outputs([0.1], [1]), outputs([0.9])) == 1


def test_average_confidence_is_cbpe_without_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    known, now = calibrated(3, 1, 50, 0), calibrated(2, 1, 40, 1)
    monkeypatch.setattr(cbpe, "calibrate", lambda *_: lambda c: c)
    want = plugins.load("harm", "average_confidence").estimate(known, now)
    assert cbpe.estimate(known, now) == pytest.approx(want)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_is_platts(seed: int) -> None:
    """scikit-learn's own fit of Platt's curve, on the same logits."""
    from sklearn.calibration import _sigmoid_calibration

    known = calibrated(4, 2, 300, seed)
    assert known.correct is not None
    bent = known.confidence**2  # no longer calibrated
    a, b = _sigmoid_calibration(np.log(bent / (1 - bent)), known.correct)
    at = np.array([0.05, 0.3, 0.8, 0.99])
    want = 1 / (1 + np.exp(a * np.log(at / (1 - at)) + b))
    np.testing.assert_allclose(cbpe.calibrate(bent, known.correct)(at), want, atol=2e-3)


@pytest.mark.parametrize("right", [0, 1])
def test_the_calibration_takes_outcomes_of_one_kind(right: int) -> None:
    found = cbpe.calibrate(np.full(30, 0.8), np.full(30, float(right)))(np.array([0.5, 0.8]))
    assert np.isfinite(found).all()
    assert abs(found[1] - right) < 0.1


def test_the_expected_confusion_matrix_is_the_true_one_in_the_mean() -> None:
    rng = RNG(0)
    shares = rng.dirichlet(np.ones(3), 40_000)
    truth = (rng.random((len(shares), 1)) > shares.cumsum(axis=1)).sum(axis=1)
    named = shares.argmax(axis=1)
    all_ = outputs(shares.max(axis=1), named == truth)
    matrix = cbpe.confusion(all_, all_, shares)
    want = np.zeros((3, 3))
    np.add.at(want, (named, truth), 1)
    np.testing.assert_allclose(matrix / len(shares), want / len(shares), atol=0.006)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(cbpe.estimate(all_, all_))
    rows = cbpe.by_class(matrix, ("a", "b", "c"))
    assert rows["b"]["recall"] == pytest.approx(want[1, 1] / want[:, 1].sum(), abs=0.02)


def test_copies_within_a_group_do_not_narrow_the_interval() -> None:
    known, now = calibrated(4, 2, 150, 0), calibrated(3, 2, 150, 1)
    ten = np.repeat(np.arange(150), 10)
    plain = _common.estimates(known, now, ["doc"], 0, draws=400)["doc"]
    copied = _common.estimates(known.take(ten), now.take(ten), ["doc"], 0, draws=400)["doc"]
    assert copied["value"] == pytest.approx(plain["value"])
    width, other = (f["high"] - f["low"] for f in (plain, copied))
    assert other == pytest.approx(width, rel=0.15)
    assert plain["low"] < plain["value"] < plain["high"]


def test_a_reference_without_outcomes_is_refused() -> None:
    for name in ("atc", "doc", "cbpe"):
        with pytest.raises(HeadwaterError, match="no known outcome"):
            plugins.load("harm", name).estimate(outputs([0.5]), outputs([0.5]))


def test_the_record_says_how_wrong_they_were() -> None:
    days = [
        {"date": "d1", "estimates": {"atc": {"value": 0.7}}, "truth": 0.8, "error": 0.02},
        {"date": "d2", "estimates": {"atc": 0.9, "doc": 0.5}, "truth": 0.6, "error": 0.04},
    ]
    found = _common.record(days)
    assert found["atc"] == {
        "days": 2,
        "mean_error": pytest.approx(0.1),
        "mean_absolute_error": pytest.approx(0.2),
        "worst": pytest.approx(0.3),
        "worst_date": "d2",
        "label_noise": pytest.approx(0.03),
    }
    assert found["doc"]["worst"] == pytest.approx(-0.1)
    assert _common.record([]) == {}


@pytest.mark.parametrize(
    ("highs", "drift", "status", "priority"),
    [
        ((0.7, 0.7, 0.95, 0.95), False, "suspected", "high"),
        ((0.7, 0.95, 0.95, 0.95), False, "not suspected", "medium"),
        ((0.95, 0.95, 0.95, 0.95), True, "not suspected", "medium"),
        ((0.95, 0.95, 0.95, 0.95), False, "not suspected", "low"),
    ],
)
def test_guesses_only_ask_for_labels(
    highs: tuple[float, ...], drift: bool, status: str, priority: str
) -> None:
    found = {n: {"value": 0.6, "low": 0.5, "high": h} for n, h in zip(NAMES, highs, strict=True)}
    said = _common.suspect(found, 0.9, 0.05, drift)
    assert (said["status"], said["priority"]) == (status, priority)


# ---- samples with known chances ----------------------------------------------------------------


def test_one_stratum_is_wilsons_interval() -> None:
    right = np.r_[np.ones(17), np.zeros(6)]
    found = _accuracy.stratified(right, np.zeros(23), {0.0: 500})
    want = binomtest(17, 23).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-6)
    halves = _accuracy.stratified(np.repeat(right, 2), np.zeros(46), {0.0: 9}, np.arange(46) // 2)
    assert (halves.value, halves.low, halves.n) == pytest.approx((found.value, found.low, 23))


def test_the_estimate_is_right_in_the_mean_over_all_samples() -> None:
    """Every sample of 2 from each of two strata, enumerated."""
    strata = [np.array([1, 0, 0, 1, 1.0]), np.array([0, 0, 1.0])]
    sizes = {0: 5, 1: 3}
    marks = np.array([0, 0, 1, 1])
    values = [
        _accuracy.stratified(np.r_[a, b], marks, sizes).value
        for a in itertools.combinations(strata[0], 2)
        for b in itertools.combinations(strata[1], 2)
    ]
    assert np.mean(values) == pytest.approx(np.concatenate(strata).mean())


def test_labelling_all_gives_the_plain_interval() -> None:
    """Strata then say nothing: the effective size is the number of images."""
    rng = RNG(0)
    strata = rng.integers(0, 3, 3000)
    right = (rng.random(3000) < np.array([0.9, 0.6, 0.3])[strata]).astype(float)
    found = _accuracy.stratified(right, strata, dict(enumerate(np.bincount(strata))))
    assert found.value == pytest.approx(right.mean())
    assert found.n == pytest.approx(3000, rel=0.01)


def test_a_request_is_narrower_than_uniform_and_covers() -> None:
    wide, hits, errors, plain, runs, count = 0.0, 0, [], [], 400, 80
    for i in range(runs):
        rng = RNG(i)
        p = rng.beta(2, 1, 600)
        right = (rng.random(600) < p).astype(float)
        plan = _request.plan(np.clip(1 - p, 0.01, 0.99), count, rng)
        sizes = dict(enumerate(np.bincount(plan.stratum)))
        chosen = plan.chosen
        found = _accuracy.stratified(right[chosen], plan.stratum[chosen], sizes)
        hits += found.low <= 2 / 3 <= found.high
        wide += (found.high - found.low) / runs
        errors.append(found.value - right.mean())
        plain.append(right[rng.choice(600, count, replace=False)].mean() - right.mean())
    assert hits >= binom.ppf(0.001, runs, 0.95)
    low, high = _accuracy.wilson(2 / 3 * count, count)
    assert wide < 0.92 * (high - low)
    assert np.std(errors) < 0.95 * np.std(plain)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / runs**0.5


@pytest.mark.parametrize("count", [2, 11, 50, 199])
def test_a_plan_keeps_its_promises(count: int) -> None:
    error = RNG(0).beta(1, 4, 200)
    plan = _request.plan(error, count, RNG(1))
    assert len(np.unique(plan.chosen)) == count
    assert plan.inclusion.sum() == pytest.approx(count)
    assert (plan.inclusion > 0).all()
    taken, size = (np.bincount(s, minlength=8) for s in (plan.stratum[plan.chosen], plan.stratum))
    np.testing.assert_allclose(plan.inclusion, (taken / np.maximum(size, 1))[plan.stratum])
    again = _request.plan(error, count, RNG(1))
    assert (again.chosen == plan.chosen).all()


def test_the_allocation_is_neymans_but_for_the_even_part() -> None:
    size, deviation = np.array([1000, 1000]), np.array([0.1, 0.4])
    given = _request.allocate(size, deviation, 100)
    assert given.tolist() == [round(100 * (0.75 * 0.2 + 0.25 * 0.5)), 72]
    assert _request.allocate(np.array([3, 1000]), np.array([0.5, 0.01]), 100)[0] <= 3


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(HeadwaterError, match="no more than"):
        _request.plan(np.full(50, 0.1), 50, RNG(0))
    with pytest.raises(HeadwaterError, match="no variance"):
        _request.plan(np.full(50, 0.1), 1, RNG(0))


# ---- slices ------------------------------------------------------------------------------------


def test_holm_and_fisher() -> None:
    assert _accuracy.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    want = fisher_exact([[3, 7], [14, 6]], alternative="less").pvalue
    assert _accuracy.less(3, 10, 14, 20) == pytest.approx(want)


def counted(right: Any, place: Any, weight: Any = None) -> Counted:
    n = len(right)
    names = np.arange(n).astype(str)
    return Counted(right, names, np.ones(n) if weight is None else weight, {"at": place})


def test_slices_are_rarely_accused_without_cause() -> None:
    runs, accused = 500, 0
    places = RNG(0).integers(0, 6, 240).astype(str)
    for i in range(runs):
        rng = RNG(i)
        now, was = ((rng.random(240) < 0.7).astype(float) for _ in range(2))
        rows = _accuracy.by_slice(counted(now, places), counted(was, places), 0.1, 0.0)
        assert len(rows) == 6
        accused += any(r["harm"] for r in rows)
    assert accused <= binom.ppf(0.999, runs, 0.1)


def test_the_slice_that_broke_is_named() -> None:
    places = np.repeat(["a", "b", "c", "few"], [60, 60, 60, 3])
    now = np.r_[np.ones(60), np.tile([1.0, 0], 30), np.ones(60), np.zeros(3)]
    rows = _accuracy.by_slice(counted(now, places), counted(np.ones(183), places), 0.05, 0.05)
    assert [r["slice"] for r in rows if r["harm"]] == ["at:b"]
    assert "at:few" not in {r["slice"] for r in rows}
    elsewhere = counted(np.ones(183), np.full(183, "z"))
    rows = _accuracy.by_slice(counted(now, places), elsewhere, 0.05, 0.05)
    assert {r["against"] for r in rows} == {"all"}


# ---- proof over repeated looks -----------------------------------------------------------------


@pytest.mark.parametrize(("error", "truth"), [(0.2, 0.2), (0.2, 0.12), (0.55, 0.55)])
def test_the_expected_e_value_is_one_at_the_border_and_less_below(
    error: float, truth: float
) -> None:
    """Exact: summed over all outcomes of 40 images."""
    n = 40
    values = [
        _sequence.e_value(np.r_[np.ones(k), np.zeros(n - k)], error) * binom.pmf(k, n, truth)
        for k in range(n + 1)
    ]
    assert sum(values) == pytest.approx(1.0) if truth == error else sum(values) < 1


def test_the_expected_evidence_over_two_days_is_one() -> None:
    n, error, total = 12, 0.3, 0.0
    for a, b in itertools.product(range(n + 1), repeat=2):
        days = [(2, (np.arange(n) < a) * 1.0), (9, (np.arange(n) < b) * 1.0)]
        chance = binom.pmf(a, n, error) * binom.pmf(b, n, error)
        total += chance * _sequence.evidence(days, error).e_value
    assert total == pytest.approx(1.0)
    by = _sequence.started(np.arange(100_000.0))
    assert (np.diff(by) > 0).all()
    assert by[[0, -1]] == pytest.approx([0, 1], abs=1e-4)


def test_the_order_of_labels_makes_no_difference() -> None:
    loss = (RNG(0).random(60) < 0.3) * 1.0
    days = [(1, loss[:20]), (4, loss[20:50]), (5, loss[50:])]
    want = _sequence.evidence(days, 0.2)
    mixed = [(5, loss[50:]), (1, RNG(1).permutation(loss[:20])), (4, loss[20:50])]
    assert _sequence.evidence(mixed, 0.2).e_value == pytest.approx(want.e_value)


def test_a_stratified_sample_may_be_bet_on() -> None:
    """Weighted losses of every sample of 2 + 1 of two strata: the mean e-value is at most 1."""
    strata = [np.array([1, 0, 0, 0.0]), np.array([1, 1, 0.0])]
    error, weights = 3 / 7, np.array([2, 2, 3]) * 3 / 7  # size / taken, with mean 1
    values = [
        _sequence.e_value(weights * np.r_[a, b], error)
        for a in itertools.combinations(strata[0], 2)
        for b in strata[1]
    ]
    assert np.mean(values) <= 1


@cache
def bounds(n: int, wrong: int) -> tuple[float, float]:
    return _sequence.interval((np.arange(n) < wrong) * 1.0, 0.1)


@pytest.mark.parametrize("truth", [0.05, 0.3])
def test_the_interval_holds_at_all_looks_together(truth: float) -> None:
    streams, missed, once = 600, 0, 0
    looks = (5, 10, 20, 40, 80, 160, 320)
    for i in range(streams):
        wrong = (RNG(i).random(looks[-1]) < truth).cumsum()
        out = [
            not low <= 1 - truth <= high
            for low, high in (bounds(n, int(wrong[n - 1])) for n in looks)
        ]
        missed += any(out)
        plain = [_accuracy.wilson(n - int(wrong[n - 1]), n) for n in looks]
        once += any(not low <= 1 - truth <= high for low, high in plain)
    assert missed <= 0.1 * streams
    assert once > missed  # what looking again and again does to an interval for one look
    low, high = bounds(320, int(320 * truth))
    assert high - low < 0.2


def test_harm_is_falsely_claimed_no_more_often_than_said() -> None:
    """At exactly the allowed loss, looking on each of 12 days; the reference is drawn as well."""
    alpha, streams, claims, days = 0.1, 500, 0, 3 * np.arange(12.0) + 1
    for i in range(streams):
        rng = RNG(i)
        error = _sequence.allowed_error(rng.binomial(150, 0.8), 150, alpha, 0.05)
        losses = [(rng.random(15) < 0.25) * 1.0 for _ in range(12)]
        logs = np.stack([_sequence.wealth(x, error) for x in losses])
        looks = (_sequence.combine(days[: k + 1], logs[: k + 1], 0) for k in range(12))
        claims += any(look.e_value >= 2 / alpha for look in looks)
    assert claims <= alpha * streams


def test_harm_that_begins_late_is_found_and_dated() -> None:
    rng = RNG(0)
    error = _sequence.allowed_error(360, 400, 0.05, 0.05)
    days = [(d + 1, (rng.random(20) < (0.1 if d < 25 else 0.4)) * 1.0) for d in range(30)]
    assert _sequence.evidence(days[:25], error).e_value < 1
    found = _sequence.evidence(days, error)
    assert found.e_value > 40
    assert abs(found.since - 26) <= 2
    assert _sequence.evidence([], error).e_value == 1


def test_groups_tell_what_their_images_share() -> None:
    """Alike within a group: as many as groups. Independent: as many as images. Bound covers."""
    rng, size = np.random.default_rng(0), 4
    single = (rng.random(400) < 0.3).astype(float)
    value, n = _accuracy.of_groups(single, np.ones(400))
    assert value == single.mean()
    assert n == pytest.approx(399)  # p (1 - p) / (s^2 / G), s^2 with G - 1
    images = np.full(4000, size)
    _, n = _accuracy.of_groups(rng.binomial(size, 0.3, 4000) / size, images)
    assert n == pytest.approx(4000 * size, rel=0.06)
    assert _accuracy.of_groups(np.full(9, 0.5), np.full(9, 2))[1] == 9
    missed = 0
    for _ in range(2000):
        chance = rng.beta(1.2, 2.8, 150)  # of a group's images: mean 0.3
        value, n = _accuracy.of_groups(rng.binomial(size, chance) / size, np.full(150, size))
        missed += _sequence.floor(value * n, n, 0.025) > 0.3
    assert missed / 2000 < 0.025 + 3 * (0.025 * 0.975 / 2000) ** 0.5
