"""The watch over a model: evidence of many days, in whatever order they come."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_monitor import CFG, DAYS, MODEL, label, register, serve, settings, watched  # noqa: F401

from ssl_core.artifacts import read_json
from ssl_core.config import Config, Deploy, Paths
from ssl_core.drift.quality import COLUMNS
from ssl_core.errors import HeadwaterError
from ssl_core.stages import _days, _labelled, _pool, _watch, monitor

RNG = np.random.default_rng


def story(paths: Paths, shifts: list[float], cfg: Config = CFG) -> list[dict[str, Any]]:
    for day, shift in zip(DAYS, shifts, strict=False):
        serve(paths, shift, date=day)
    return [monitor.run(cfg, paths, day) for day, _ in zip(DAYS, shifts, strict=False)]


def test_one_strange_day_is_no_alarm_and_days_under_alarm_are_not_taken_for_normal(
    watched: Paths,
) -> None:
    found = story(watched, [0, 1, 1, 1, 1])
    assert [v["drift"] for v in found] == [False, False, False, True, True]
    assert found[1]["scores"]["mmd"]["p_value"] < 0.01
    assert [v["scores"]["mmd"]["details"]["reference_rows"] for v in found[:2]] == [150, 250]
    alarmed = [look.state.alarm for look in _watch.looks(CFG, watched, MODEL, DAYS[4])]
    assert alarmed == ["", "", "", DAYS[3], DAYS[3]]
    assert "alarm of 2026-03-04 stands" in found[4]["reason"]


def test_days_in_any_order_give_the_same_verdicts(watched: Paths, tmp_path: Path) -> None:
    shifts = [0.0, 0.4, 0.0, 0.4, 0.4]
    want = story(watched, shifts)
    other = Paths(tmp_path / "other")
    register(other)
    for i in (3, 0, 4, 2, 1):
        serve(other, shifts[i], date=DAYS[i])
        monitor.run(CFG, other, DAYS[i])
    got = [read_json(other.monitor / f"date={d}/verdict.json") for d in DAYS[:5]]
    assert got == want
    shutil.rmtree(watched.runs)  # only time is lost
    assert monitor.judge(CFG, watched, DAYS[4]) == want[4]


def test_a_labelled_day_is_joined_again_only_when_something_changed(
    watched: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = []
    join = _labelled.join
    monkeypatch.setattr(_labelled, "join", lambda *a: (joined.append(a[2]), join(*a))[1])
    frames = {day: serve(watched, accuracy=0.6, date=day) for day in DAYS[:3]}
    for day, frame in frames.items():
        label(watched, frame.iloc[::2], day)
    first = _labelled.history(CFG, watched, MODEL, DAYS[2])
    assert joined == DAYS[:3]
    again = _labelled.history(CFG, watched, MODEL, DAYS[2])
    assert joined == DAYS[:3]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.value, one.error, one.number) == (other.value, other.error, other.number)
    label(watched, frames[DAYS[1]], DAYS[1])  # the rest of its labels
    served = serve(watched, accuracy=0.9, date=DAYS[0])  # predicted again
    label(watched, served.iloc[::2], DAYS[0])
    found = _labelled.history(CFG, watched, MODEL, DAYS[2])
    assert sorted(joined[3:]) == DAYS[:2]
    assert [len(day.losses) for day in found] == [50, 100, 50]
    assert found[0].value > first[0].value + 0.1


def test_a_day_rests_on_earlier_days_only(watched: Paths) -> None:
    before = story(watched, [0, 0.3, 0.3])[1]
    serve(watched, 2, date=DAYS[2])
    serve(watched, 2, date=DAYS[3])
    assert monitor.judge(CFG, watched, DAYS[1]) == before


def test_another_model_starts_from_nothing(watched: Paths) -> None:
    story(watched, [0, 1, 1, 1])
    register(watched, "ba9876543210")
    serve(watched, date=DAYS[4], model="ba9876543210")
    found = monitor.run(CFG, watched, DAYS[4])
    assert not found["drift"]
    assert found["evidence"]["looks"] == 1


def test_labels_that_come_late_change_no_evidence(watched: Paths) -> None:
    before = story(watched, [0, 0.3])
    label(watched, serve(watched, 0.3, date=DAYS[1]), DAYS[1])
    after = monitor.run(CFG, watched, DAYS[1])
    assert after["accuracy"] is not None
    assert after["evidence"] == before[1]["evidence"]


def test_every_detector_is_asked_about_what_it_sees(watched: Paths) -> None:
    cfg = settings(detectors=["label_shift", "quality", "occupancy", "domain_classifier"])
    rest = {name: np.linspace(0, 1, 100) for name in COLUMNS[1:]}
    serve(watched, date=DAYS[0], **rest)
    serve(watched, date=DAYS[1], rejected=5, **rest)
    serve(watched, date=DAYS[2])
    first, second, third = (monitor.run(cfg, watched, d) for d in DAYS[:3])
    assert "nothing to compare" in first["skipped"]["quality"]
    assert second["skipped"] == {}
    assert second["scores"]["quality"]["n"] == 105
    assert second["scores"]["quality"]["details"]["middle"]["rejected"] == [0, 5 / 105]
    assert second["scores"]["label_shift"]["details"]["units"] == 350
    assert "no columns of quality" in third["skipped"]["quality"]


def test_groups_are_units_and_copies_count_once(watched: Paths) -> None:
    serve(watched, date=DAYS[0], group=[f"g{i // 10}" for i in range(100)])
    found = monitor.judge(CFG, watched, DAYS[0])["scores"]["mmd"]["details"]
    assert found["units"] == 150 + 10
    serve(watched, date=DAYS[0], sha256=[f"{i // 2}" for i in range(100)])
    found = monitor.judge(CFG, watched, DAYS[0])["scores"]["mmd"]["details"]
    assert found["units"] == 150 + 50


def test_few_images_are_not_judged(watched: Paths) -> None:
    serve(watched, 5, n=7)
    found = monitor.judge(CFG, watched, DAYS[0])
    assert found["scores"] == {}
    assert "too few" in found["reason"]


def test_a_declared_pause_is_neither_judged_nor_remembered(watched: Paths) -> None:
    cfg = settings(pause=[f"{DAYS[1]}..{DAYS[3]}"])
    found = story(watched, [0, 1, 1, 1, 0], cfg)
    assert [bool(v["scores"]) for v in found] == [True, False, False, False, True]
    assert not any(v["drift"] for v in found)
    assert found[4]["scores"]["mmd"]["details"]["reference_rows"] == 250
    assert "declared pause" in found[2]["reason"]
    for bad in ("2026-03", "2026-03-05..2026-03-01"):
        with pytest.raises(HeadwaterError, match="no day or period"):
            monitor.judge(settings(pause=[bad]), watched, DAYS[0])


def test_a_season_is_compared_with_itself(watched: Paths) -> None:
    """Sundays are another world; by weekday that is nothing new after the first one."""
    cfg = settings(season="weekday")
    dates = ["2026-03-01", "2026-03-02", "2026-03-08", "2026-03-09"]
    for day, shift in zip(dates, [2, 0, 2, 0], strict=True):
        serve(watched, shift, date=day)
    found = [monitor.run(cfg, watched, d) for d in dates]
    assert [bool(v["scores"]) for v in found] == [False, False, True, True]
    assert all(v["scores"]["mmd"]["p_value"] > 0.02 for v in found[2:])
    plain = [monitor.judge(CFG, watched, d)["scores"]["mmd"]["p_value"] for d in dates]
    assert min(plain) < 0.01


def test_days_as_units_take_a_days_own_whim_for_normal(watched: Paths) -> None:
    cfg = settings(unit="day")
    whims = RNG(0).normal(size=7)
    found = story(watched, list(whims), cfg)
    p = [v["scores"]["mmd"]["p_value"] for v in found[1:]]
    assert min(p) > 0.05  # seven days have seven places for the strangest
    assert not any(v["drift"] for v in found)
    assert monitor.judge(CFG, watched, DAYS[6])["scores"]["mmd"]["p_value"] < 0.01


def test_drawing_takes_whole_units_and_shuffles_nothing_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_pool, "POOL", 40)
    values = np.arange(300)
    batches = [
        _pool.Batch(np.array([f"{b}/{i // 5}" for i in range(100)]), lambda r, b=b: values[r + b])
        for b in (0, 100)
    ]
    pair = _pool.draw(batches, batches[1], "image", RNG(0))
    assert len(pair.past) == 40
    names = [f"{100 * (v // 100)}/{v % 100 // 5}" for v in pair.past]
    assert names == pair.past_units.tolist()
    assert set(np.unique(pair.past_units, return_counts=True)[1]) == {5}
    daily = _pool.draw(batches, batches[1], "day", RNG(0))
    assert (len(daily.past), len(daily.now)) == (12, 6)


def test_days_draw_their_own_random_numbers() -> None:
    draws = [_watch.stream(0, *k).random() for k in (("a", "x"), ("a", "x"), ("b", "x"))]
    assert draws[0] == draws[1] != draws[2]


def test_groups_are_what_the_expression_captures() -> None:
    paths = pd.Series(["cam1_7.png", "x/cam2_8.png", "other.png"])
    assert _days.grouping(r"(cam\d)_")(paths).tolist() == ["cam1", "cam2", ""]
    assert _days.grouping("")(paths).tolist() == ["", "", ""]
    for bad in ("(", "cam", "(a)(b)"):
        with pytest.raises(HeadwaterError, match=r"deploy\.group"):
            _days.grouping(bad)


def test_alpha_is_a_chance() -> None:
    assert Deploy().alpha == 0.05
    for bad in (0, 1):
        with pytest.raises(ValueError, match="alpha"):
            Deploy(alpha=bad)
