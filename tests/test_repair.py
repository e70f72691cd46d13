"""The ladder: each rung by itself, the gate, and whole repairs on a real small project."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from toy import ARGS, CFG, CLASSES, champion, deploy

from ssl_core import gate, models, plugins, registry
from ssl_core.artifacts import read_json, read_lines, write_json
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.evaluate._head import Head, softmax
from ssl_core.repair import _judge, lora, reweight
from ssl_core.repair._common import Ask, Candidate, Skip, Stop
from ssl_core.stages import _evidence, repair

DAY = "2025-01-07"
QUICK = {"detectors": ["mmd"], "permutations": 99, "reference": 40}
TABLE = {  # what each rung answers to the harm of the fixture
    "nothing": Skip,
    "fix_data": Skip,
    "recalibrate": Skip,
    "reweight": Skip,
    "refit_head": Candidate,
    "lp_ft": Candidate,
    "lora": Candidate,
    "continued_ssl": Candidate,
    "full": Ask,
}


def settings(**changes: Any) -> Config:
    """The toy's configuration; ``repair__steps=3`` sets repair.steps."""
    tree: dict[str, Any] = CFG.model_dump(by_alias=True)
    tree["deploy"] |= QUICK
    tree["repair"] |= {"steps": 4, "ssl_epochs": 1}
    tree["pretrain"] |= {"image_size": 16, "crop_size": 16, "batch_size": 32, "precision": "fp32"}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tree[section][key] = value
    return Config.model_validate(tree)


CASE = settings()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion and one day on which every hue moved."""
    paths = Paths(tmp_path_factory.mktemp("template"))
    champion(paths, CASE)
    deploy(paths, DAY, 0.1, cfg=CASE)
    return paths.root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Paths:
    shutil.copytree(template, tmp_path / "p")
    return Paths(tmp_path / "p")


@pytest.fixture(scope="module")
def case(template: Path) -> Any:
    """The repair's case as the ladder sees it; nothing in it is changed."""
    paths, name = Paths(template), "case"
    start = {"key": name, "dates": [DAY], "champion": registry.champion(paths.registry)}
    return repair._case(CASE, paths, start | {"attempt": 1})[0]


# ---- rungs -------------------------------------------------------------------------------------


def test_every_rung_has_a_row() -> None:
    assert set(TABLE) == set(plugins.names("repair")) == set(Config().repair.rungs)


@pytest.mark.parametrize("name", TABLE)
def test_rungs_answer(name: str, case: Any, tmp_path: Path) -> None:
    context = replace(case.context, work=tmp_path)
    rung = plugins.load("repair", name)
    before = {k: v.clone() for k, v in context.champion.encoder.model.state_dict().items()}
    answer = rung.propose(context, CASE)
    assert rung.cost(context, CASE) >= 0
    assert isinstance(answer, TABLE[name])
    after = context.champion.encoder.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())  # the champion is untouched
    if isinstance(answer, Candidate):
        assert set(answer.head.classes) == set(CLASSES[:3])
        assert 0 < answer.labels == context.labelled
        own = answer.encoder
        assert (own is None) == (name == "refit_head")
        if own is not None:
            moved = own.model.state_dict()
            assert {k: v.shape for k, v in moved.items()} == {k: v.shape for k, v in before.items()}
            changed = {k for k, v in moved.items() if not torch.equal(v, before[k])}
            assert changed
            if name == "lora":
                assert all(k.split(".")[-2] in lora.TARGETS and "attn" in k for k in changed)


def test_costs_rise_along_the_ladder(case: Any) -> None:
    cfg = settings(repair__steps=300, repair__ssl_epochs=5, pretrain__epochs=50)
    cost = {n: plugins.load("repair", n).cost(case.context, cfg) for n in TABLE}
    order = [cost[n] for n in ("nothing", "reweight", "refit_head", "lp_ft", "full")]
    assert order == sorted(order)
    assert cost["continued_ssl"] < cost["full"]


def test_em_finds_the_maximum_of_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    prior, true = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    label = rng.choice(3, 4000, p=true)
    x = rng.normal(size=(4000, 3)) + 1.5 * np.eye(3)[label]
    # Bayes' rule for unit Gaussians: the classifier that knows the old prior
    p = softmax((1.5 * x + np.log(prior)).astype(np.float32))
    found = reweight.shares(p, prior)

    def loss(free: np.ndarray) -> float:
        q = np.exp(np.r_[free, 0])
        q /= q.sum()
        return -float(np.log((p * (q / prior)).sum(1)).mean())

    best = np.exp(np.r_[minimize(loss, np.zeros(2), tol=1e-10).x, 0])
    np.testing.assert_allclose(found, best / best.sum(), atol=2e-3)
    np.testing.assert_allclose(found, true, atol=0.03)


def test_lora_starts_as_the_layer_and_merges_into_it() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 12)
    adapter, x = lora.Adapter(layer, 2), torch.randn(5, 8)
    plain = layer(x)
    torch.testing.assert_close(adapter(x), plain, rtol=0, atol=0)
    nn.init.normal_(adapter.up)
    want = adapter(x)
    assert not torch.allclose(want, plain)
    merged = adapter.merged()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), want, rtol=1e-5, atol=1e-5)


def test_lora_names_vits_only(case: Any) -> None:
    encoder = models.create("vit_tiny_patch16_224", ARGS)
    assert [n.rpartition(".")[2] for n in lora.insert(encoder, 4)] == ["qkv", "proj"]
    cnn = replace(case.context.champion, encoder=models.create("resnet10t", {}))
    answer = lora.propose(replace(case.context, champion=cnn), CASE)
    assert isinstance(answer, Skip)
    assert "needs a ViT" in answer.reason


def test_a_broken_feed_stops(case: Any) -> None:
    feed = ({"date": DAY, "broken": True, "rejected": 9, "images": 10, "distinct": 1},)
    answer = plugins.load("repair", "fix_data").propose(replace(case.context, feed=feed), CASE)
    assert isinstance(answer, Stop)
    assert "9 of 10" in answer.reason


def test_recalibration_is_for_calibration(case: Any) -> None:
    cfg = settings(repair__metric="brier")
    answer = plugins.load("repair", "recalibrate").propose(case.context, cfg)
    assert isinstance(answer, Candidate)
    assert answer.head.temperature > case.context.champion.head.temperature  # it errs and is sure
    assert np.array_equal(answer.head.weight, case.context.champion.head.weight)
    found, _, _ = _judge.judge(case.evidence, answer, 1.0, 0.95, cfg)
    assert found["gain"]["difference"] > 0


# ---- who learns, who judges --------------------------------------------------------------------


def frame_of(groups: int) -> pd.DataFrame:
    name = [f"g{i // 3}" for i in range(3 * groups)]
    return pd.DataFrame(
        {"sha256": [f"s{i}" for i in range(len(name))], "group": name, "label": "x"}
    ).assign(earlier=False)


def test_sides_share_no_group_and_never_change() -> None:
    frame, none = frame_of(200), pd.DataFrame({"sha256": [], "group": []})
    learn, judge, _ = _evidence.split(frame, none, {"g3"}, CASE)
    assert not set(learn["group"]) & set(judge["group"])
    assert "g3" not in set(learn["group"])
    assert 0.4 < len(judge) / len(frame) < 0.6
    again, _, _ = _evidence.split(frame.iloc[::2], none, set(), CASE)
    assert not set(again["group"]) & set(judge["group"])
    used = pd.DataFrame({"sha256": judge["sha256"].head(5), "group": ""})
    assert len(_evidence.split(frame, used, set(), CASE)[1]) == len(judge) - 5


def test_labels_beyond_the_budget_are_not_looked_at() -> None:
    none = pd.DataFrame({"sha256": [], "group": []})
    learn, judge, counts = _evidence.split(
        frame_of(200), none, set(), settings(repair__max_labels=60)
    )
    assert counts["learn_labels"] + len(judge) == 60
    assert (learn["label"] == "").any()  # their images may still be learned from


def test_all_looks_together_spend_the_level_once() -> None:
    looks = sum(plugins.load("repair", n).JUDGED for n in TABLE)
    spent = sum(looks * (1 - repair.level_of(CASE, k)) for k in range(1, 500))
    assert spent == pytest.approx(1 - CASE.promote.level, rel=5e-3)
    assert spent <= 1 - CASE.promote.level


# ---- the gate ----------------------------------------------------------------------------------


def test_scores_equal_their_definition() -> None:
    rng = np.random.default_rng(0)
    head = Head(
        rng.normal(size=(3, 4)).astype(np.float32),
        np.zeros(3, np.float32),
        ("a", "b", "c"),
        1.3,
        {},
    )
    x, labels = rng.normal(size=(30, 4)).astype(np.float32), np.array(["a", "b", "c", "z", "a"] * 6)
    p = head.probabilities(x)
    for i, name in enumerate(labels):
        y = np.array([name == c for c in head.classes], float)
        away = sum((p[i] - y) ** 2) + (name == "z")  # the class it lacks gets probability 0
        assert _judge.score(head, x, labels, "brier")[i] == pytest.approx(1 - away / 2, abs=1e-6)
        right = head.classes[p[i].argmax()] == name
        assert _judge.score(head, x, labels, "accuracy")[i] == right


def test_kinship_ignores_rotation_and_scale() -> None:
    rng = np.random.default_rng(0)
    a, turn = rng.normal(size=(50, 6)), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert _judge.kinship(a, 3 * a @ turn + 1) == pytest.approx(1)
    assert _judge.kinship(a, rng.normal(size=(50, 6))) < 0.5


def test_a_champion_that_names_a_class_too_often_can_be_replaced() -> None:
    labels = np.array(["a", "b"] * 200)
    fair = np.where(np.arange(400) % 20 < 2, "b", labels)  # misses one a in ten
    frame = pd.DataFrame({"label": labels, "named": fair, "other_named": "a"})
    frame = frame.assign(
        correct=frame["named"] == labels,
        other=frame["other_named"] == labels,
        group=[str(i) for i in range(400)],
        sha256=[str(i) for i in range(400)],
        source="s",
        part="new",
    )
    rule = CASE.promote
    only = gate.compare(frame[frame["label"] == "a"], rule, 0.95, 0)
    assert gate.worse(only, rule.margin)  # its own images alone would forbid it
    parts = dict(_judge.slices(frame, frame[:0]))
    assert not any(gate.worse(gate.compare(p, rule, 0.95, 0), rule.margin) for p in parts.values())
    back = frame.rename(
        columns={"named": "other_named", "other_named": "named"}
        | {"correct": "other", "other": "correct"}
    )
    parts = dict(_judge.slices(back, frame[:0]))
    found = {k: gate.compare(p, rule, 0.95, 0) for k, p in parts.items()}
    assert gate.worse(found["class:a"], rule.margin)
    assert gate.worse(found["class:b"], rule.margin)


def test_the_champion_itself_and_a_forgetful_head_are_refused(case: Any) -> None:
    champion_head = case.context.champion.head
    same, _, _ = _judge.judge(case.evidence, Candidate(champion_head), 0.5, 0.95, CASE)
    assert not same["passed"]
    assert "no gain is proven" in same["reason"]
    pool = case.context.pool
    only_new = pool.embeddings(
        case.context.features, np.arange(pool.old, len(pool))
    )  # what was known is not learned again
    from ssl_core.evaluate import linear

    forgetful = Candidate(linear.fit(only_new))
    found, _, _ = _judge.judge(case.evidence, forgetful, 0.5, 0.95, CASE)
    assert found["gain"]["low"] > 0
    assert not found["passed"]
    assert "points is not proven on the old images" in found["reason"]
    assert "proven worse on old:a, old:b" in found["reason"]
    gone = settings(repair__old_margin=1)  # the old images do not come any more
    found, _, _ = _judge.judge(case.evidence, forgetful, 0.3, 0.95, gone)
    assert found["passed"], found["reason"]
    assert not any(name.startswith("old:") for name in found["slices"])
    assert found["old"]["difference"] < -0.03  # told all the same


# ---- whole repairs -----------------------------------------------------------------------------


def test_the_ladder_stops_at_the_first_rung_that_mends(project: Paths) -> None:
    old = str(registry.champion(project.registry))
    done = repair.run(CASE, project, [DAY])
    assert (done["outcome"], done["rung"]) == ("promoted", "refit_head")
    new = registry.champion(project.registry)
    assert new == done["candidate"] != old
    assert [r["outcome"] for r in done["rungs"]] == ["skipped"] * 4 + ["passed"]
    assert done["gain"]["low"] > 0
    assert done["cost"]["labels"] > 0
    own, was = (registry.verify(project.registry, n) for n in (new, old))
    assert own["files"][models.WEIGHTS] == was["files"][models.WEIGHTS]  # the same encoder
    assert (own["rung"], own["repaired_from"], own["days"]) == ("refit_head", old, [DAY])
    text = (project.registry / "models" / new / "MODEL_CARD.md").read_text()
    assert f"| repaired from | `{old}` |" in text
    assert done["rungs"][-1]["reason"] in text
    reference = pd.read_parquet(project.registry / "models" / new / "reference.parquet")
    assert set(reference["source"]) == {"deployment", "a", "b"}
    assert reference["correct"].mean() > 0.9
    event = registry.history(project.registry)[-1]
    assert (event["event"], event["previous"], event["rung"]) == ("promote", old, "refit_head")
    [line] = repair.history(project)
    assert line["inputs"]
    before = registry.history(project.registry)
    assert repair.run(CASE, project, [DAY], done["key"]) == done  # asked again: nothing new
    assert registry.history(project.registry) == before
    assert len(repair.history(project)) == 1


def test_a_second_repair_remembers_the_first(project: Paths) -> None:
    repair.run(CASE, project, [DAY])
    name = str(registry.champion(project.registry))
    deploy(project, "2025-06-07", 0.5, cfg=CASE)
    fresh = _evidence.gather(CASE, project, ["2025-06-07"], registry.load(project.registry, name))
    assert fresh.learn.earlier.any()
    assert fresh.judge.earlier.any()
    cfg = settings(repair__rungs=["refit_head"])
    again = repair.run(cfg, project, ["2025-06-07"])
    judged = again["rungs"][-1]["judged"]
    assert {"old:a", "old:b", "old:deployment"} <= set(judged["slices"])
    assert judged["old"]["n"] == 120 + fresh.judge.earlier.sum()


def test_a_rung_that_did_not_last_is_not_tried_again(project: Paths) -> None:
    first = repair.run(CASE, project, [DAY])
    assert first["outcome"] == "promoted"
    deploy(project, "2025-02-07", 0.5, cfg=CASE)
    again = repair.run(settings(repair__rungs=["refit_head", "full"]), project, ["2025-02-07"])
    assert [r["outcome"] for r in again["rungs"]] == ["skipped", "asked"]
    assert "did not last" in again["rungs"][0]["reason"]
    assert again["looks"] == 0


def test_a_rung_that_did_not_last_is_tried_again_on_twice_the_labels(project: Paths) -> None:
    few = settings(repair__max_labels=200)
    first = repair.run(few, project, [DAY])
    card = registry.load(project.registry, first["candidate"]).card
    assert first["outcome"] == "promoted"
    assert card["repaired_on"] == first["loss"]["labels"] <= 200
    days = ["2025-02-07", "2025-02-08"]
    for day in days:
        deploy(project, day, 0.5, cfg=CASE)
    again = repair.run(settings(repair__rungs=["refit_head"]), project, days)
    assert again["loss"]["labels"] >= 2 * card["repaired_on"]
    assert again["rungs"][0]["outcome"] in ("passed", "refused")


def test_what_finishes_a_repair_may_win_back_less_and_by_the_same_rung(project: Paths) -> None:
    first = repair.run(CASE, project, [DAY])
    deploy(project, "2025-02-07", 0.5, cfg=CASE)
    file = project.monitor / "date=2025-02-07/verdict.json"
    write_json(file, read_json(file) | {"harm": False})
    cfg = settings(repair__rungs=["nothing", "refit_head"], deploy__min_drop=0.9)
    again = repair.run(cfg, project, ["2025-02-07"])
    assert (first["finishes"], again["finishes"]) == ("", "first")
    assert again["rungs"][0]["outcome"] == "skipped"
    assert "did not last" not in again["rungs"][1]["reason"]
    later = repair.run(cfg, project, ["2025-02-07"], "k")
    assert later["finishes"] == "later"


def test_no_training_to_finish_a_repair_that_has_little_left(project: Paths) -> None:
    repair.run(CASE, project, [DAY])
    deploy(project, "2025-02-07", 0.1, cfg=CASE)  # as the repair left it
    file = project.monitor / "date=2025-02-07/verdict.json"
    write_json(file, read_json(file) | {"harm": False})
    rungs = ["nothing", "refit_head", "lp_ft", "continued_ssl", "full"]
    found = repair.run(settings(repair__rungs=rungs), project, ["2025-02-07"])
    assert [r["outcome"] for r in found["rungs"]] == ["skipped", "refused", *["skipped"] * 3]
    assert "Too little is lost for a training" in found["reason"]
    assert found["outcome"] == "nothing"


def test_no_harm_no_repair(project: Paths) -> None:
    deploy(project, "2025-01-08", 0.0, cfg=CASE)
    done = repair.run(CASE, project, ["2025-01-08"])
    assert (done["outcome"], done["rung"], done["looks"]) == ("nothing", "nothing", 0)
    assert len(registry.history(project.registry)) == 1


def test_what_costs_too_much_is_skipped_with_its_price(project: Paths) -> None:
    done = repair.run(settings(repair__max_seconds=1e-6), project, [DAY])
    assert done["outcome"] == "none"
    assert "more than repair.max_seconds" in done["rungs"][-1]["reason"]


def test_the_last_rung_asks_for_the_chain(project: Paths) -> None:
    done = repair.run(settings(repair__rungs=["nothing", "full"]), project, [DAY])
    assert done["outcome"] == "full"
    assert [r["key"] for r in repair.requests(project)] == [done["key"]]
    assert len(registry.history(project.registry)) == 1


def test_too_few_labels_wait_and_then_go_on(project: Paths) -> None:
    labels = project.root / CASE.deploy.labels / f"{DAY}.csv"
    text = labels.read_text()
    labels.write_text("".join(text.splitlines(True)[:61]))  # 30 groups: some 15 judge
    found = repair.run(CASE, project, [DAY], "k")
    assert found["outcome"] == "labels"
    assert repair.waits(project, "k")
    assert not repair.history(project)
    labels.write_text(text)
    assert repair.run(CASE, project, [DAY], "k")["outcome"] == "promoted"
    assert not repair.waits(project, "k")


def test_only_so_many_repairs_a_week(project: Paths) -> None:
    cfg = settings(repair__per_week=1, repair__rungs=["full"])
    assert repair.run(cfg, project, [DAY], "one")["outcome"] == "full"
    deploy(project, "2025-01-09", 0.1, cfg=CASE)
    assert repair.run(cfg, project, ["2025-01-09"], "two")["outcome"] == "resting"
    deploy(project, "2025-01-14", 0.1, cfg=CASE)
    assert repair.run(cfg, project, ["2025-01-14"], "three")["outcome"] == "full"


def test_a_rung_that_fails_gives_way_to_the_next(project: Paths, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise HeadwaterError("x", "diverged", "y")

    monkeypatch.setattr("ssl_core.repair.refit_head.propose", fail)
    cfg = settings(repair__rungs=["refit_head", "lp_ft"], repair__steps=60, repair__lr=1e-3)
    done = repair.run(cfg, project, [DAY])
    assert done["rungs"][0]["outcome"] == "failed"
    assert done["rungs"][1]["rung"] == "lp_ft"
    if done["outcome"] == "promoted":
        assert registry.load(project.registry, done["candidate"])


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_fine_tuning_mirrors_only_what_pretraining_did(
    project: Paths, monkeypatch: Any, flip: float
) -> None:
    seen: dict[str, Any] = {}

    def fit(*_: Any, **given: Any) -> None:
        seen.update(given)
        raise HeadwaterError("x", "is enough", "y")

    monkeypatch.setattr("ssl_core.finetune.fit", fit)
    cfg = settings(repair__rungs=["lp_ft"], pretrain__options={"flip": flip})
    repair.run(cfg, project, [DAY])
    assert seen["view"].flip == flip
    assert seen["keep"]


def test_a_rejected_model_does_not_return(project: Paths) -> None:
    done = repair.run(CASE, project, [DAY], "first")
    registry.rollback(project.registry, "bad on phones")
    again = repair.run(settings(repair__rungs=["refit_head"]), project, [DAY], "second")
    assert again["attempt"] == 2
    assert again["rungs"][0]["candidate"] == done["candidate"]
    assert again["outcome"] == "none"
    assert "bad on phones" in again["rungs"][0]["reason"]


@pytest.mark.parametrize("key", ["..", "a/b", ".x", "x" * 80])
def test_unsafe_keys_are_refused(project: Paths, key: str) -> None:
    with pytest.raises(HeadwaterError, match="plain name"):
        repair.run(CASE, project, [DAY], key)


def test_the_decision_says_what_it_rests_on(project: Paths) -> None:
    done = repair.run(CASE, project, [DAY])
    file = project.repair / done["key"] / "decision.json"
    assert read_json(file) == done
    assert set(done["inputs"]) == {f"predictions/{DAY}", f"labels/{DAY}", "champion", "shards"}
    [line] = read_lines(project.repair / "log.jsonl")
    assert line["decision_sha256"] == registry.sha256_file(file)
