"""Detectors: one row each in the table, level, power, errors; and the test that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssl_core import plugins
from ssl_core.config import Deploy
from ssl_core.drift import _common, mmd
from ssl_core.errors import HeadwaterError

RNG = np.random.default_rng
Sample = Callable[[int, np.random.Generator], np.ndarray]


def rows(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(n, 5))


def classes(n: int, rng: np.random.Generator, p: tuple[float, ...] = (0.5, 0.3, 0.2)) -> np.ndarray:
    truth = rng.choice(3, n, p=p)
    named = np.where(rng.random(n) < 0.8, truth, rng.choice(3, n))
    return np.stack([np.array(list("abc"))[named], np.array(list("abc"))[truth]], axis=1)


def photos(n: int, rng: np.random.Generator, light: float = 0.0) -> np.ndarray:
    found = rng.normal(size=(n, 6)) + light
    found[:, 0] = rng.random(n) < 0.1
    found[found[:, 0] == 1, 1:] = np.nan
    return found


@dataclass(frozen=True)
class Row:
    """How a detector's null and a clear change look, and whether position and units may differ."""

    null: Sample
    changed: Sample
    free: bool = True


SHIFTED: Sample = lambda n, rng: rows(n, rng) + 1  # noqa: E731
TABLE = {
    "domain_classifier": Row(rows, SHIFTED),
    "frechet": Row(rows, SHIFTED),
    "ks": Row(rows, SHIFTED),
    "label_shift": Row(classes, lambda n, rng: classes(n, rng, (0.1, 0.2, 0.7)), free=False),
    "mmd": Row(rows, SHIFTED),
    "occupancy": Row(rows, lambda n, rng: rows(n, rng) + 2),
    "quality": Row(photos, lambda n, rng: photos(n, rng, 1.5), free=False),
}
NAMES = plugins.names("drift")
GROUPS = ([f"r{i // 4}" for i in range(48)], [f"c{i // 4}" for i in range(48)])


def detector(name: str) -> ModuleType:
    return plugins.load("drift", name)


def test_every_detector_has_a_row() -> None:
    assert list(TABLE) == NAMES
    assert set(Deploy().detectors) <= set(NAMES)
    assert {detector(n).SEES for n in NAMES} == {"features", "classes", "quality"}


def interval(runs: int, level: float) -> tuple[float, float]:
    low, high = stats.binom.interval(0.999, runs, level)
    return low, high


@pytest.mark.parametrize("name", NAMES)
def test_level_under_the_null(name: str) -> None:
    """With 19 relabellings p <= 0.1 has a chance of 0.1, but for ties of counts."""
    runs, hits, rng = 120, 0, RNG(0)
    for i in range(runs):
        x, y = (TABLE[name].null(n, rng) for n in (40, 30))
        hits += detector(name).score(x, y, RNG(i), 19).p_value <= 0.1
    low, high = interval(runs, 0.1)
    assert low * (name != "label_shift") <= hits <= high


@pytest.mark.parametrize("name", NAMES)
def test_level_with_groups_of_near_copies(name: str) -> None:
    """Each group holds one image four times, nearly: as single images they would look new."""
    runs, hits, naive, rng = 80, 0, 0, RNG(1)
    for i in range(runs):
        x, y = (np.repeat(TABLE[name].null(12, rng), 4, axis=0) for _ in range(2))
        score = detector(name).score
        hits += score(x, y, RNG(i), 19, GROUPS).p_value <= 0.1
        naive += name == "mmd" and score(x, y, RNG(i), 19).p_value <= 0.1
    assert hits <= interval(runs, 0.1)[1]
    assert naive > interval(runs, 0.1)[1] or name != "mmd"


@pytest.mark.parametrize("name", NAMES)
def test_power_at_a_clear_change(name: str) -> None:
    rng, found = RNG(2), []
    for i in range(12):
        x, y = TABLE[name].null(60, rng), TABLE[name].changed(60, rng)
        found.append(detector(name).score(x, y, RNG(i), 99).p_value)
    assert np.mean(np.array(found) <= 0.05) >= 0.9
    assert min(found) < 1 / 100  # more relabellings are drawn where none is as extreme
    assert min(found) >= 1 / (1 + _common.DEEPER * 99)


@pytest.mark.parametrize("name", [n for n in NAMES if TABLE[n].free])
def test_units_and_position_do_not_matter(name: str) -> None:
    x, y = RNG(0).normal(size=(40, 4)), RNG(1).normal(size=(30, 4)) + 0.3
    plain, moved = (
        detector(name).score(a, b, RNG(5), 49) for a, b in ((x, y), (1e3 * x + 7e3, 1e3 * y + 7e3))
    )
    assert moved.statistic == pytest.approx(plain.statistic, rel=1e-6)
    assert moved.p_value == plain.p_value


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_score_and_equal_rows_give_none(name: str) -> None:
    x, y = TABLE[name].null(40, RNG(0)), TABLE[name].null(30, RNG(1))
    one, again = (detector(name).score(x, y, RNG(3), 49) for _ in range(2))
    assert one == again
    assert one.n == 30
    assert one.details["reference_rows"] == 40
    flat = np.repeat(x[:1], 20, axis=0)
    assert detector(name).score(flat, flat, RNG(0), 49).p_value == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    good = TABLE[name].null(20, RNG(0))
    with pytest.raises(HeadwaterError, match="one width"):
        detector(name).score(good, good[:, :1], RNG(0), 19)
    with pytest.raises(_common.TooFew, match="too few"):
        detector(name).score(good, good[:1], RNG(0), 19)
    with pytest.raises(HeadwaterError, match="one for each row"):
        detector(name).score(good, good, RNG(0), 19, (["a"] * 20, ["b"]))
    bad: Any = good.copy()
    bad[3] = "" if name == "label_shift" else np.nan
    with pytest.raises(HeadwaterError, match=r"not finite|not all named"):
        detector(name).score(good, bad, RNG(0), 19)


# ---- what is shared ----------------------------------------------------------------------------


def test_relabellings_are_uniform() -> None:
    for ones in (2, 3):
        marks = _common.relabellings(ones, 4, 6000, RNG(0))
        assert (marks.sum(0) == ones).all()
        _, counts = np.unique(marks, axis=1, return_counts=True)
        assert np.ptp(counts) < 0.2 * counts.mean() + 100
        assert len(counts) == (6 if ones == 2 else 4)


def test_groups_are_relabelled_whole_and_within_their_block() -> None:
    pair = rows(24, RNG(0)), rows(24, RNG(1))
    heap = _common.pile(pair, (GROUPS[0][:24], GROUPS[1][:24]), 1000, RNG(0))
    marks = mmd.deal(heap, 2, RNG(0)).draw(50, RNG(1))
    for unit in range(12):
        assert (np.ptp(marks[heap.unit == unit], axis=0) == 0).all()
    assert (marks.sum(axis=0) == 24).all()
    parts = mmd.deal(heap, 2, RNG(0))
    of_row = parts.stratum[parts.unit]
    assert len(set(marks[of_row == 0].sum(axis=0))) == 1


def test_the_pile_keeps_rows_with_their_side() -> None:
    x, y = np.arange(30.0)[:, None], 100 + np.arange(20.0)[:, None]
    for groups in (None, ([f"a{i // 3}" for i in range(30)], [f"a{i // 2}" for i in range(20)])):
        heap = _common.pile((x, y), groups, 1000, RNG(0))
        assert ((heap.rows[:, 0] < 100) == (heap.truth == 1)).all()
        assert (heap.origin == heap.rows[:, 0] % 100).all()
        assert not (np.diff(heap.rows[:, 0]) > 0).all()
    assert len(heap.first) == 20  # groups of equal names on both sides are two


def test_thinning_takes_whole_units_and_spares_the_smaller_side() -> None:
    big, small = np.arange(1000.0)[:, None], np.arange(50.0)[:, None]
    heap = _common.pile((big, small), None, 200, RNG(0))
    assert (heap.truth.sum(), len(heap.rows), heap.thinned) == (150, 200, True)
    names = ([i // 10 for i in range(1000)], [i // 10 for i in range(50)])
    heap = _common.pile((big, small), names, 200, RNG(0))
    assert (np.bincount(heap.unit) == 10).all()
    assert (heap.first.sum(), len(heap.first)) == (15, 20)


def test_p_values_count_ties_and_the_observed_itself() -> None:
    assert _common.p_value(1.0, np.array([0.0, 1.0, 2.0, 0.5])) == 3 / 5
    assert _common.p_value(0.3, np.array([0.1 + 0.2])) == 1  # equal but for rounding
    assert _common.p_value(9.0, np.zeros(99)) == 0.01


def test_the_longer_test_is_still_valid() -> None:
    """P(p <= u) <= u on both sides of the place where more relabellings are drawn."""
    heap = _common.pile((rows(6, RNG(0)), rows(6, RNG(1))), None, 100, RNG(0))
    found = []
    for i in range(4000):
        rng = RNG(i)
        observed = rng.random()

        def fake(marks: np.ndarray, rng: Any = rng, observed: float = observed) -> np.ndarray:
            return rng.random(marks.shape[1]) if marks.shape[1] > 1 else np.array([observed])

        found.append(_common.test(heap, fake, rng, 19)[1])
    for u in (0.004, 0.01, 0.05, 0.1, 0.5):
        assert np.sum(np.array(found) <= u) <= stats.binom.ppf(0.9995, 4000, u)
    assert min(found) < 0.05 / 3


def test_components_are_those_of_either_matrix() -> None:
    x = RNG(0).normal(size=(30, 50)) @ np.diag(np.linspace(1, 5, 50))
    wide, tall = _common.components(x, 4), _common.components(np.repeat(x, 2, axis=0), 4)[::2]
    np.testing.assert_allclose(np.abs(wide), np.abs(tall), atol=1e-8)
    np.testing.assert_allclose(wide.T @ wide / 30, np.eye(4), atol=1e-9)
    assert _common.components(np.ones((9, 3)), 4).shape == (9, 0)


def test_chi_square_and_simes_are_scipys() -> None:
    label, side = RNG(0).integers(0, 4, 60), RNG(1).integers(0, 2, 60)
    table = np.array([[np.sum((label == k) & (side == s)) for k in range(4)] for s in (1, 0)])
    found = _common.chi_square(np.eye(4)[label], side[:, None].astype(float))
    assert found[0] == pytest.approx(stats.chi2_contingency(table).statistic)
    p = RNG(2).random((7, 3))
    want = [stats.false_discovery_control(c).min() for c in p.T]
    np.testing.assert_allclose(_common.simes(p), want)
