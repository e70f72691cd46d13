"""Dagster's definitions: they load, equal DVC's graph, and ask for one retraining and not two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import yaml

from pipelines import home, sensors
from pipelines.definitions import defs
from ssl_core import plugins
from ssl_core.__main__ import CHAIN
from ssl_core.artifacts import append_line, write_json
from ssl_core.config import Deploy, Paths
from ssl_core.stages import trigger

ROOT = Path(__file__).parent.parent
OTHERS = {
    "analyse",
    "audit",
    "raw_images",
    "collected",
    "predictions",
    "monitor",
    "repair",
    "watch",
    "report",
    *(f"study_{name}" for name in plugins.names("studies")),
}


def dvc_edges() -> set[tuple[str, str]]:
    """(upstream stage, stage) of dvc.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

    def name(out: str | dict) -> str:
        return out if isinstance(out, str) else next(iter(out))

    maker = {name(o): s for s, spec in stages.items() for o in spec["outs"]}
    return {(maker[d], s) for s, spec in stages.items() for d in spec["deps"] if d in maker}


def dagster_edges() -> set[tuple[str, str]]:
    graph = defs.resolve_asset_graph()
    return {
        (parent.to_user_string(), node.key.to_user_string())
        for node in graph.asset_nodes
        for parent in node.parent_keys
    }


def test_both_graphs_have_the_same_edges() -> None:
    inside = {e for e in dagster_edges() if set(e) <= set(CHAIN)}
    assert inside == dvc_edges()
    assert len(inside) > 12


def test_chain_of_the_command_is_the_graph_in_order() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(CHAIN)
    for name, spec in stages.items():
        assert spec["cmd"] == f"python -m ssl_core {name.replace('_', '-')}"


def test_every_asset_has_a_group_a_pool_and_a_description() -> None:
    for asset in defs.assets or []:
        for spec in asset.specs if isinstance(asset, dg.AssetsDefinition) else [asset]:
            assert spec.group_name in ("data", "model", "deployment", "studies"), spec.key
            assert spec.description, spec.key
        if isinstance(asset, dg.AssetsDefinition):
            assert asset.op.pool in ("gpu", "io"), asset.key
    checks = {c.name: c for c in defs.resolve_asset_graph().asset_check_keys}
    keys = {k.to_user_string() for k in defs.resolve_asset_graph().get_all_asset_keys()}
    assert {*OTHERS, *CHAIN} == keys
    assert set(checks) == {
        "data_is_valid",
        "seed_features_are_sound",
        "shards_are_sound",
        "features_are_sound",
        "challenger_is_better",
        "day_is_normal",
        "harm_is_repaired",
    }


def test_the_code_location_loads() -> None:
    dg.Definitions.validate_loadable(defs)  # as webserver and daemon do: names clash only here


def test_validation_blocks() -> None:
    from assets import embed, seed_embed, shard, validate

    for module in (validate, seed_embed, shard, embed):
        assert module.CHECK.blocking


def test_schedules_and_sensors_are_there() -> None:
    assert {s.name for s in defs.schedules or []} == {"nightly", "daily"}
    by = {s.name: s for s in defs.sensors or []}
    assert set(by) == {
        "retrain_on_harm",
        "full_chain",
        "follow_up",
        "tell",
        "late_labels",
        "new_day",
    }
    assert by["retrain_on_harm"].default_status == dg.DefaultSensorStatus.RUNNING


def test_home_turns_telemetry_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = yaml.safe_load((home.prepare() / "dagster.yaml").read_text())
    assert settings["telemetry"] == {"enabled": False}
    assert settings["concurrency"]["pools"]["default_limit"] == 1
    dg.DagsterInstance.from_config(str(tmp_path / "home")).dispose()  # the schema is Dagster's


# ---- the decision to retrain -----------------------------------------------------------------


def verdicts(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"date": d, "model": m, "verdict": v, "reason": f"{v} on {d}", "broken": False}
            for d, m, v in rows
        ]
    ).assign(alarm=None, since=None, harm_since=None)


def test_harm_of_the_champion_asks_once_with_all_changed_days() -> None:
    history = verdicts(
        ("2025-01-01", "old", "harm"),
        ("2025-01-08", "new", "ok"),
        ("2025-01-15", "new", "drift"),
        ("2025-01-22", "new", "harm"),
        ("2025-01-29", "new", "drift"),
    )
    found = trigger.decide(Deploy(), history, "new")
    assert found == trigger.Request(
        "new:2025-01-22", ("2025-01-15", "2025-01-22"), "harm on 2025-01-22"
    )


def test_days_before_the_alarm_on_which_the_change_began_are_taken_along() -> None:
    history = verdicts(
        ("2025-01-01", "m", "ok"),
        ("2025-01-08", "m", "ok"),
        ("2025-01-15", "m", "ok"),
        ("2025-01-22", "m", "drift"),
        ("2025-01-29", "m", "harm"),
    )
    history["since"] = ["2025-01-01", *["2025-01-15"] * 4]  # a guess only, until the alarm
    history["alarm"] = [None, None, None, "2025-01-22", "2025-01-22"]
    found = trigger.decide(Deploy(), history, "m")
    assert found is not None
    assert found.dates == ("2025-01-15", "2025-01-22", "2025-01-29")
    history["harm_since"] = [*[None] * 4, "2025-01-08"]
    found = trigger.decide(Deploy(), history, "m")
    assert found is not None
    assert found.dates[0] == "2025-01-08"


@pytest.mark.parametrize(
    ("history", "champion"),
    [
        (verdicts(("2025-01-01", "m", "drift")), "m"),  # change alone is no reason
        (verdicts(("2025-01-01", "m", "harm")), "other"),  # the harm was another model's
        (verdicts(("2025-01-01", "m", "harm")), None),
        (pd.DataFrame(), "m"),
        (verdicts(("2025-01-01", "m", "harm")).assign(broken=True), "m"),  # the feed is to blame
    ],
)
def test_no_reason_to_retrain(history: pd.DataFrame, champion: str | None) -> None:
    assert trigger.decide(Deploy(), history, champion) is None


def test_cooldown_counts_days_of_data() -> None:
    history = verdicts(("2025-01-01", "m", "harm"), ("2025-01-20", "m", "harm"))
    deploy = Deploy(cooldown_days=20)
    assert trigger.decide(deploy, history, "m", "2025-01-01") is None
    later = verdicts(("2025-01-21", "m", "harm"))
    assert trigger.decide(deploy, pd.concat([history, later]), "m", "2025-01-01") is not None


def labelled(model: str, *rows: tuple[str, int]) -> pd.DataFrame:
    history = verdicts(*[(day, model, "ok") for day, _ in rows])
    return history.assign(labels=[float(n) for _, n in rows])


REPAIR = {"key": "old-2025-01-01", "champion": "old", "candidate": "new", "outcome": "promoted"}
REPAIR |= {"counts": {"learn_labels": 60, "judge": 40}}


def test_a_repair_is_looked_at_again_when_there_are_as_many_labels_as_it_had() -> None:
    few = labelled("new", ("2025-01-08", 60), ("2025-01-15", 39))
    assert trigger.unfinished(Deploy(), few, "new", [REPAIR]) is None
    enough = labelled("new", ("2025-01-08", 60), ("2025-01-15", 40))
    found = trigger.unfinished(Deploy(), enough, "new", [REPAIR])
    assert found is not None
    assert (found.key, found.dates) == ("new:2025-01-15", ("2025-01-08", "2025-01-15"))
    asked = REPAIR | {"outcome": "full", "candidate": None}  # the chain made what serves now
    assert trigger.unfinished(Deploy(), enough, "new", [asked]) == found
    many = REPAIR | {"counts": {"learn_labels": 6000, "judge": 4000}}
    assert trigger.unfinished(Deploy(min_labels=10), enough, "new", [many]) is not None
    assert trigger.unfinished(Deploy(min_labels=11), enough, "new", [many]) is None
    assert trigger.unfinished(Deploy(), enough, "new", []) is None  # never repaired
    assert trigger.unfinished(Deploy(), enough, "new", [REPAIR], "2025-01-10") is None


def test_a_repair_is_looked_at_again_at_each_doubling() -> None:
    look = REPAIR | {"champion": "new", "candidate": None, "outcome": "nothing"}
    for there, due in ((199, False), (200, True)):
        history = labelled("new", ("2025-01-08", 100), ("2025-01-15", there - 100))
        found = trigger.unfinished(Deploy(), history, "new", [REPAIR, look])
        assert (found is not None) == due


@pytest.mark.parametrize(("labels", "known"), [(199, True), (200, False)])
def test_harm_is_looked_at_again_when_labels_have_doubled(labels: int, known: bool) -> None:
    history = labelled("m", ("2025-01-08", labels), ("2025-01-15", 50))
    request = trigger.Request("m:2025-01-08", ("2025-01-08",), "harm")
    climb = REPAIR | {"champion": "m", "outcome": "none", "candidate": None, "looks": 3}
    climb |= {"loss": {"labels": 100}, "counts": {"learn_labels": 500, "judge": 500}}
    assert trigger.looked_at(request, history, "m", [climb]) == known
    assert not trigger.looked_at(request, history, "m", [climb | {"looks": 0}])
    assert not trigger.looked_at(request, history, "m", [climb | {"finishes": "later"}])
    assert not trigger.looked_at(request, history, "m", [climb | {"champion": "other"}])


@pytest.mark.parametrize(("accuracy", "due"), [(0.9, False), (0.89, True)])
def test_a_look_is_spared_where_daily_accuracy_shows_no_loss(accuracy: float, due: bool) -> None:
    history = labelled("new", ("2025-01-08", 100), ("2025-01-15", 300))
    history = history.assign(accuracy=[0.9, (4 * accuracy - 0.9) / 3], reference=0.9)

    def asked(*repairs: dict[str, Any]) -> bool:
        return trigger.unfinished(Deploy(), history, "new", repairs) is not None

    loss = {"metric": "accuracy", "reference": 0.5}
    chain = REPAIR | {"outcome": "full", "candidate": None, "loss": loss}
    look = REPAIR | {"champion": "new", "candidate": None, "outcome": "nothing"}
    look |= {"loss": loss | {"reference": 0.9}}
    assert asked(chain) == due
    assert asked(REPAIR, look) == due
    assert asked(REPAIR | {"loss": loss})  # a rung's own reference had its loss in it
    assert asked(REPAIR, look | {"loss": loss | {"metric": "brier", "reference": 0.0}})


def test_a_day_with_a_broken_feed_does_not_count_as_labels() -> None:
    history = labelled("new", ("2025-01-08", 100)).assign(broken=True)
    assert trigger.unfinished(Deploy(), history, "new", [REPAIR]) is None


# ---- sensors on a real folder ----------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sensors, "ROOT", tmp_path)
    write_json(tmp_path / "data/registry/champion.json", {"id": "m"})
    return tmp_path


def judge(place: Path, day: str, verdict: str) -> None:
    write_json(
        place / f"data/deploy/monitor/date={day}/verdict.json",
        {
            "date": day,
            "model": "m",
            "verdict": verdict,
            "reason": verdict,
            "scores": {},
            "accuracy": None,
            "inputs": {"broken": False},
        },
    )


def test_retrain_sensor_asks_once_and_rests(place: Path) -> None:
    judge(place, "2025-01-06", "ok")
    instance = dg.DagsterInstance.ephemeral()
    with dg.build_sensor_context(instance=instance) as context:
        assert not sensors.retrain_on_harm.evaluate_tick(context).run_requests
    judge(place, "2025-01-13", "harm")
    with dg.build_sensor_context(instance=instance) as context:
        tick = sensors.retrain_on_harm.evaluate_tick(context)
    [request] = tick.run_requests
    assert request.run_key == "m:2025-01-13"
    assert request.run_config["ops"]["repair"]["config"] == {
        "dates": ["2025-01-13"],
        "key": "m-2025-01-13",
    }
    assert tick.cursor == "2025-01-13"
    judge(place, "2025-01-20", "harm")
    with dg.build_sensor_context(instance=instance, cursor=tick.cursor) as context:
        assert not sensors.retrain_on_harm.evaluate_tick(context).run_requests


def test_a_repair_that_waits_for_labels_is_asked_for_again(place: Path) -> None:
    judge(place, "2025-01-13", "harm")
    labels = place / "data/deploy/labels/2025-01-13.csv"
    write_json(place / "data/deploy/repair/m-2025-01-13/waiting.json", {"outcome": "labels"})
    instance, keys = dg.DagsterInstance.ephemeral(), []
    for text in ("path,label\n", "path,label\n", "path,label\na.png,x\n"):
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(text)
        with dg.build_sensor_context(instance=instance, cursor="2025-01-13") as context:
            [request] = sensors.retrain_on_harm.evaluate_tick(context).run_requests
        keys.append(request.run_key)
    assert keys[0] == keys[1] != keys[2]  # Dagster starts one run per key
    assert keys[0].startswith("m:2025-01-13:")


def test_a_loss_that_was_not_proven_is_looked_at_again_after_a_week(place: Path) -> None:
    decision = {"key": "m-2025-01-13", "outcome": "nothing"}
    write_json(place / "data/deploy/repair/m-2025-01-13/decision.json", decision)
    for day, asked in (("2025-01-19", False), ("2025-01-20", True)):
        judge(place, day, "harm")
        found = trigger.due(sensors._config(), Paths(place), "2025-01-13")
        assert (found is not None) == asked


def test_the_whole_chain_is_started_once_per_request(place: Path) -> None:
    log = place / "data/deploy/repair/log.jsonl"
    for key, outcome in (("m-1", "promoted"), ("m-2", "full")):
        append_line(log, {"key": key, "outcome": outcome, "dates": ["2025-01-13", "2025-01-20"]})
    instance = dg.DagsterInstance.ephemeral()
    with dg.build_sensor_context(instance=instance) as context:
        tick = sensors.full_chain.evaluate_tick(context)
    [request] = tick.run_requests
    assert request.run_key == "full:m-2"
    assert request.run_config["ops"]["collected"]["config"]["key"] == "2025-01-20"
    with dg.build_sensor_context(instance=instance, cursor=tick.cursor) as context:
        assert not sensors.full_chain.evaluate_tick(context).run_requests


def test_new_days_and_late_labels(place: Path) -> None:
    for day in ("2025-01-06", "2025-01-07"):
        (place / f"data/deploy/incoming/{day}").mkdir(parents=True)
    (place / "data/deploy/predictions/date=2025-01-06").mkdir(parents=True)
    labels = place / "data/deploy/labels/2025-01-06.csv"
    labels.parent.mkdir()
    labels.write_text("path,label\n")
    instance = dg.DagsterInstance.ephemeral()
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        [run] = sensors.new_day.evaluate_tick(context).run_requests
    assert run.partition_key == "2025-01-07"
    with dg.build_sensor_context(instance=instance, definitions=defs) as context:
        first = sensors.late_labels.evaluate_tick(context)
    assert [r.partition_key for r in first.run_requests] == ["2025-01-06"]
    assert set(json.loads(first.cursor)) == {"2025-01-06"}
    with dg.build_sensor_context(
        instance=instance, cursor=first.cursor, definitions=defs
    ) as context:
        assert not sensors.late_labels.evaluate_tick(context).run_requests


def test_definitions_load_without_what_is_heavy() -> None:
    """Dagster imports them in every step, the daemon and the code server."""
    heavy = "torch", "timm", "scipy", "sklearn", "matplotlib", "great_expectations", "dvc"
    code = f"import pipelines.definitions, sys; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
