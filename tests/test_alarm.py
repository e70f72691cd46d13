"""The sequential alarm: false alarms within the bound, delay, restarts, a state one can keep."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom

from ssl_core import alarm

RNG = np.random.default_rng


def days(count: int, every: int = 1) -> list[str]:
    return [(date(2025, 1, 1) + timedelta(days=every * i)).isoformat() for i in range(count)]


def walk(p: np.ndarray, every: int = 1, alpha: float = 0.05, names: str = "a") -> list[alarm.State]:
    """The states after each row of ``p`` (T, D)."""
    state, found = alarm.State(), []
    for when, row in zip(days(len(p), every), p, strict=True):
        state = alarm.step(state, when, dict(zip(names, row, strict=True)), alpha, len(names))
        found.append(state)
    return found


@pytest.mark.parametrize("k", range(len(alarm.BETS)))
def test_every_bet_has_mean_one_under_the_null(k: int) -> None:
    found, _ = quad(lambda x: np.exp(alarm.bets(x)[k]), 0, 1, limit=500)
    assert found == pytest.approx(1, abs=1e-3)
    values = [alarm.bets(p)[k] for p in (1e-6, 1e-3, 0.1, 1)]
    assert values == sorted(values, reverse=True)  # a conservative p-value only lowers the bet


def test_the_recursion_is_the_sum_over_starts() -> None:
    """R_t = sum over j of w_j e_j ... e_t, and the CUSUM its largest term, by brute force."""
    p = 0.2 + 0.8 * RNG(0).random((12, 1))
    track = walk(p, every=7)[-1].tracks["/a"]
    e = np.exp([alarm.bets(float(x)) for x in p[:, 0]])  # (T, K)
    w = np.array([1, *[7] * 11]) / 365
    terms = np.array([w[j] * e[j:].prod(axis=0) for j in range(12)])  # (T, K)
    np.testing.assert_allclose(track.total, np.log(terms.sum(axis=0)))
    np.testing.assert_allclose(track.best, np.log(terms.max(axis=0)))
    assert track.since == tuple(days(12, 7)[i] for i in terms.argmax(axis=0))
    assert alarm.value(track) == pytest.approx(np.log(terms.sum(axis=0).mean()))


@pytest.mark.parametrize(("count", "every", "runs"), [(365, 1, 20), (52, 7, 200)])
def test_false_alarms_within_a_year_stay_below_alpha(count: int, every: int, runs: int) -> None:
    """Uniform p-values, which a permutation test never undercuts."""
    alpha, hits = 0.5, 0
    for i in range(runs):
        p = RNG(i).random((count, 1))
        hits += any(s.alarm for s in walk(p, every, alpha))
    assert 0 < hits <= binom.ppf(0.999, runs, alpha)


def test_detectors_share_alpha() -> None:
    p = np.full((4, 1), 1e-3)
    alone, both = walk(p)[-1], walk(np.repeat(p, 2, axis=1), names="ab")[-1]
    one, two = (alarm.describe(s, 0.05, d)["value"] for s, d in ((alone, 1), (both, 2)))
    assert one == pytest.approx(2 * two)
    assert alone.tracks["/a"] == both.tracks["/b"]


def test_a_change_is_found_soon_and_dated() -> None:
    quiet = 0.05 + 0.95 * RNG(0).random((60, 1))
    states = walk(np.concatenate([quiet, np.full((3, 1), 1e-4)]))
    raised = [i for i, s in enumerate(states) if s.alarm]
    assert raised[0] == 61  # the second day
    found = alarm.describe(states[-1], 0.05, 1)
    assert found["since"] == days(63)[60]
    assert found["alarm"] == days(63)[61]
    assert found["value"] > found["threshold"] == 20
    assert found["detector"] == "a"


def test_many_faint_signs_add_up_and_chance_does_not() -> None:
    faint = walk(np.full((40, 1), 0.04))
    assert 5 < next(i for i, s in enumerate(faint) if s.alarm) < 30
    assert not any(s.alarm for s in walk(np.full((365, 1), 0.5)))


def test_what_was_lost_in_quiet_years_delays_nothing() -> None:
    tail = np.full((10, 1), 1e-3)
    late = walk(np.concatenate([np.full((2000, 1), 0.9), tail]))
    early = walk(np.concatenate([np.full((5, 1), 0.9), tail]))
    first = [next(i for i, s in enumerate(x) if s.alarm) for x in (late, early)]
    assert first[0] - 2000 <= first[1] - 5


def test_an_alarm_ends_after_quiet_looks_and_evidence_starts_anew() -> None:
    p = [1e-4] * 3 + [0.5, 0.001, 0.5, 0.5, 0.5, 0.5]
    states = walk(np.array(p)[:, None])
    on = [bool(s.alarm) for s in states]
    assert on == [False] + [True] * 6 + [False] * 2  # a sign of change began the count anew
    assert not states[7].tracks
    assert states[8].looks == 9
    assert alarm.describe(states[8], 0.05, 1)["value"] < 0.1


def test_a_look_without_any_detector_changes_nothing() -> None:
    before = walk(np.full((3, 1), 1e-4))[-1]
    after = alarm.step(before, "2025-02-01", {}, 0.05, 1)
    assert after == before


def test_weights_add_up_to_the_time_that_passed() -> None:
    dates = ["2025-01-01", "2025-01-02", "2025-01-09", "2025-01-31"]
    parts = [alarm.weight(a, b) for a, b in zip(["", *dates], dates, strict=False)]
    assert sum(parts) == pytest.approx(31 / 365)
    assert alarm.weight("2025-01-01", "2026-01-01") == alarm.LONGEST / 365


def test_seasons_keep_their_own_evidence_but_share_the_year() -> None:
    state = alarm.State()
    for i, when in enumerate(days(28)):
        season = "even" if i % 2 else "odd"
        state = alarm.step(state, when, {"a": 0.9}, 0.05, 1, season)
    assert set(state.tracks) == {"even/a", "odd/a"}
    assert state.last == {"a": days(28)[-1]}  # weights are of one calendar


def test_the_state_survives_json() -> None:
    import json

    state = walk(np.array([[0.2, 1e-5], [0.3, 1e-5], [0.1, 1e-5]]), names="ab")[-1]
    assert alarm.restore(json.loads(json.dumps(state.plain()))) == state
    assert alarm.describe(alarm.State(), 0.05, 2)["since"] is None


def test_evidence_stays_a_number() -> None:
    found = alarm.describe(walk(np.full((900, 1), 1e-300))[-1], 0.05, 1)
    assert np.isfinite(found["value"])
