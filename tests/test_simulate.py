"""The simulated year: what the world shows, how it is scored, and that a call can be continued."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_core import registry
from ssl_core.artifacts import read_json
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.stages import _year, _year_life, _year_scores, simulate

ALL = _year.scenarios(20)
POOL = _year_life.digits(16)
SMALL = {"weeks": 4, "per_week": 24, "period": 2, "window": 2}


def week(name: str, number: int, count: int = 100, pool: Any = POOL) -> list[_year.Shot]:
    return _year.week_of(ALL[name], pool, number, count, 0, "9", ("1", "8"))


def settings(**changes: Any) -> Config:
    """One epoch; two scenarios and two policies."""
    base = Config().simulate.settings
    tiny = base | {"pretrain": base["pretrain"] | {"epochs": 1}}
    plan = {"scenarios": ["none", "vendor"], "policies": ["never", "periodic"]}
    return Config.model_validate({"simulate": SMALL | plan | {"settings": tiny} | changes})


# ---- the world ---------------------------------------------------------------------------------


def test_weeks_are_functions_of_their_number() -> None:
    assert week("vendor", 5) == week("vendor", 5)
    assert week("none", 5) != week("none", 6)
    assert len({s.group for s in week("none", 5)}) == 100  # no picture twice in a week


@pytest.mark.parametrize("name", ["vendor", "blur", "camera", "slow"])
def test_scenarios_differ_by_the_change_alone(name: str) -> None:
    onset = ALL[name].onset
    assert week(name, onset - 1) == week("none", onset - 1)
    ours, plain = week(name, onset), week("none", onset)
    assert [(s.path, s.label) for s in ours] == [(s.path, s.label) for s in plain]
    assert ours != plain


def test_classes_come_as_said() -> None:
    def share(name: str, number: int, labels: tuple[str, ...]) -> float:
        return float(np.mean([s.label in labels for s in week(name, number, 150)]))

    onset = ALL["new_class"].onset
    assert share("none", 20, ("9",)) == share("new_class", onset - 1, ("9",)) == 0
    assert 0.1 < share("new_class", onset, ("9",)) < 0.27  # 2 of 11
    assert share("none", onset, ("1", "8")) < 0.35
    assert 0.5 < share("label_shift", onset, ("1", "8")) < 0.8  # 16 of 23, without replacement


def test_a_broken_camera_tears_files_and_is_mended() -> None:
    def readable(number: int) -> float:
        found = []
        for shot in week("camera", number, 150):
            try:
                found.append(bool(Image.open(io.BytesIO(shot.data)).convert("RGB")))
            except OSError:
                found.append(False)
        return float(np.mean(found))

    onset = ALL["camera"].onset
    assert readable(onset - 1) == 1
    assert 0.45 < readable(onset) < 0.75
    assert readable(20) == 1


def test_labels_come_late_and_in_part() -> None:
    came = [_year.arrival(f"{i}.png", 5, 0.6, 0) for i in range(3000)]
    shares = {w: came.count(w) / 3000 for w in (6, 8, None)}
    assert shares == pytest.approx({6: 0.4, 8: 0.2, None: 0.4}, abs=0.03)


def test_more_images_than_pictures_are_refused() -> None:
    with pytest.raises(HeadwaterError, match="more than the 1617 pictures"):
        week("none", 1, 1618)


# ---- scores ------------------------------------------------------------------------------------


def case(name: str, policy: str, accuracy: list[float], **more: Any) -> dict[str, Any]:
    alarms = more.pop("alarms", [])
    weeks = [
        {"week": i + 1, "accuracy": a, "alarm": i + 1 in alarms} for i, a in enumerate(accuracy)
    ]
    base: dict[str, Any] = {"moves": [], "seconds": {}, "labels": 0, "trainings": 0}
    return base | {"scenario": name, "policy": policy, "weeks": weeks} | more


def test_scores_by_hand() -> None:
    about = _year.scenarios(6)  # vendor: from week 2 on
    assert about["vendor"].onset == 2
    normal = [0.9, 0.8, 0.9, 0.8, 0.9, 0.8]
    full = {"week": 3, "how": "full", "difference": 0.2}
    bad = {"week": 4, "how": "full", "difference": -0.04}
    back = {"week": 5, "how": "rollback", "difference": 0.04}
    cases = [
        case("none", "never", normal),
        case("vendor", "never", [0.9, 0.3, 0.3, 0.3, 0.3, 0.3]),
        case(
            "vendor",
            "ours",
            [0.9, 0.3, 0.3, 0.8, 0.9, 0.7],
            alarms=[1, 3, 4, 6],
            moves=[full, bad, back],
            seconds={"repair": 2.0, "training": 1.0, "monitoring": 5.0},
        ),
        case("vendor", "periodic", [0.9] * 6, seconds={"training": 12.0}),
    ]
    rows = _year_scores.table(cases, about, 0.03)
    never, ours = rows[1], rows[2]
    assert never["lost"] == pytest.approx(0.5 + 0.6 + 0.5 + 0.6 + 0.5)
    assert ours["lost"] == pytest.approx(0.5 + 0.6 + 0 + 0 + 0.1)
    assert ours["recovered"] == pytest.approx(1 - 1.2 / 2.7)
    assert (ours["false_alarms"], ours["delay"], ours["mended_after"]) == (1, 1, 1)
    assert (ours["promotions"], ours["harmful"], ours["rollbacks"]) == (2, 1, 1)
    assert (ours["seconds"], ours["watching"]) == (3.0, 5.0)
    total = {t["policy"]: t for t in _year_scores.totals(rows, about)}
    assert total["ours"]["cost"] == pytest.approx(3 / 12)
    assert total["ours"]["recovered"] == pytest.approx(1 - 1.2 / 2.7)
    assert total["ours"]["found"] == [1, 1]
    assert total["never"]["cost"] is None  # it has a scenario that periodic has not


# ---- a few weeks -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(tmp_path_factory.mktemp("year"))
    simulate.run(settings(), paths)
    return paths


def report(paths: Paths) -> dict[str, Any]:
    found: dict[str, Any] = read_json(paths.reports / "simulate.json")
    return found


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k != "seconds"}


def test_accuracies_are_those_of_the_model_that_served(lived: Paths) -> None:
    year = simulate.Year(settings(), lived)
    first = year.champion()
    model = str(registry.champion(first.registry))
    for name in ("none", "vendor"):
        [found] = [c for c in report(lived)["cases"] if c["scenario"] == name][:1]
        assert found["policy"] == "never"
        for row in found["weeks"]:
            shots = _year.week_of(
                year.scenarios[name], year.pool, row["week"], 24, 0, "9", ("1", "8")
            )
            right = _year_life.said(year.cfg, first, model, shots)
            assert row["accuracy"] == pytest.approx(right.mean())
            assert (row["model"], row["images"]) == (model, 24)


def test_periodic_retraining_retrains_and_costs(lived: Paths) -> None:
    cases = {(c["scenario"], c["policy"]): c for c in report(lived)["cases"]}
    for name in ("none", "vendor"):
        found = cases[name, "periodic"]
        assert found["trainings"] == 2
        assert [m["week"] for m in found["moves"]] == [2, 4]
        assert found["seconds"]["training"] > 0
        served = [w["model"] for w in found["weeks"]]
        assert served[0] == served[1] != served[2] == served[3]
        assert found["weeks"][0] == cases[name, "never"]["weeks"][0]
    never, other = (cases["vendor", p]["weeks"] for p in ("never", "periodic"))
    lost = sum(a["accuracy"] - b["accuracy"] for a, b in zip(never, other, strict=True))
    rows = {(r["scenario"], r["policy"]): r for r in report(lived)["table"]}
    saved = rows["vendor", "never"]["lost"] - rows["vendor", "periodic"]["lost"]
    assert saved == pytest.approx(-lost)
    assert (lived.reports / "simulate.png").read_bytes().startswith(b"\x89PNG")
    assert "| vendor | periodic |" in (lived.reports / "simulate.md").read_text()


def test_a_second_call_does_what_is_missing_and_finds_the_same(
    lived: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ran = report(lived), []
    folder = simulate.Year(settings(), lived).folder
    (folder / "vendor-periodic.json").unlink()
    (folder / "vendor-periodic").mkdir()  # what a killed call leaves
    (folder / "vendor-periodic/half").write_text("")
    live = simulate.live

    def noted(cfg: Config, life: Any, policy: str) -> dict[str, Any]:
        ran.append(policy)
        return live(cfg, life, policy)

    monkeypatch.setattr(simulate, "live", noted)
    simulate.run(settings(), lived)
    assert ran == ["periodic"]
    after = report(lived)
    assert [timeless(c) for c in after["cases"]] == [timeless(c) for c in before["cases"]]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for change, text in (
        ({"scenarios": ["storm"]}, "simulate.scenarios storm: is unknown"),
        ({"policies": ["hope"]}, "simulate.policies hope: is unknown"),
        ({"images": "nowhere"}, "is no folder of shards"),
    ):
        with pytest.raises(HeadwaterError, match=text):
            simulate.run(settings(**change), Paths(tmp_path))
