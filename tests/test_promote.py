"""The gate: its rule on made-up outcomes, and the stage on real shards and tiny encoders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from toy import CFG, CLASSES, SIDE, build, samples, tell_baseline, write_encoder

from ssl_core import gate, models, registry, shards
from ssl_core.artifacts import read_json, read_lines, sha256_file, write_json, write_lineage
from ssl_core.config import Config, Paths, Promote
from ssl_core.errors import HeadwaterError
from ssl_core.gate import Trial
from ssl_core.stages import _entry, embed, evaluate, promote

RULE = Promote(bootstrap=500)


@pytest.fixture
def first(tmp_path: Path) -> Paths:
    """A project whose first candidate is ready."""
    paths = Paths(tmp_path)
    build(paths, {"a": CLASSES[:3], "b": CLASSES[:3]}, seed=0)
    return paths


# ---- the rule ----------------------------------------------------------------------------------


def outcomes(**gains: tuple[float, int]) -> pd.DataFrame:
    """Sources with (accuracy gained, groups of two images); the opponent is right on 60 %."""
    rng, parts = np.random.default_rng(0), []
    for source, (gain, groups) in gains.items():
        n = 2 * groups
        other = np.arange(n) < round(0.6 * n)
        ours = np.arange(n) < round((0.6 + gain) * n)
        rng.shuffle(both := np.stack([ours, other], 1))
        group = [f"{source}{i // 2}" for i in range(n)]
        parts.append(
            pd.DataFrame(
                {
                    "sha256": [f"{source}-{i}" for i in range(n)],
                    "group": group,
                    "source": source,
                    "correct": both[:, 0],
                    "other": both[:, 1],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def rule(frame: pd.DataFrame, known: set[str] | None, cfg: Promote = RULE) -> tuple[bool, str]:
    trial = Trial(frame, "champion x", None if known is None else frozenset(known))
    return gate.judge(trial, *gate.compare_all(trial, cfg, seed=0), cfg.margin)


def test_a_gain_everywhere_is_promoted_and_none_is_not() -> None:
    promoted, reason = rule(outcomes(a=(0.1, 100), b=(0.1, 100)), {"a", "b"})
    assert promoted, reason
    assert "all test images" in reason
    promoted, reason = rule(outcomes(a=(0.0, 100), b=(0.0, 100)), {"a", "b"})
    assert not promoted
    assert reason.startswith("Not proven better than champion x")


def test_a_gain_on_a_new_source_is_enough() -> None:
    frame = outcomes(a=(-0.02, 400), b=(-0.01, 400), new=(0.2, 60))
    assert rule(frame.query("source != 'new'"), {"a", "b"})[0] is False
    promoted, reason = rule(frame, {"a", "b"})
    assert promoted, reason
    assert "new, new to the champion" in reason
    assert "all test images" not in reason


def test_a_gain_on_one_known_source_is_not_enough() -> None:
    frame = outcomes(a=(-0.02, 400), b=(-0.01, 400), c=(0.2, 60))
    assert rule(frame, {"a", "b", "c"})[0] is False


def test_a_gain_where_it_serves_is_enough_though_the_champion_learned_from_there() -> None:
    gains = {"a": (-0.02, 400), "b": (-0.01, 400), "deployment": (0.2, 60)}
    promoted, reason = rule(outcomes(**gains), {"a", "b", "deployment"})
    assert promoted, reason
    assert "on deployment (" in reason
    gains = {"a": (0.15, 300), "deployment": (-0.08, 200)}
    assert not rule(outcomes(**gains), {"a", "deployment"})[0]  # and a loss there forbids it


def test_a_loss_on_a_known_source_forbids_it() -> None:
    promoted, reason = rule(outcomes(a=(0.15, 300), b=(-0.08, 200)), {"a", "b"})
    assert not promoted
    assert "worse by more than 3 points on b" in reason
    assert rule(outcomes(a=(0.15, 300), b=(-0.08, 200)), {"a"})[0]  # b is new: no promise broken


def test_a_loss_within_the_margin_or_within_chance_does_not() -> None:
    assert rule(outcomes(a=(0.15, 300), b=(-0.025, 400)), {"a", "b"})[0]  # proven, but small
    frame = outcomes(a=(0.15, 300), b=(0.0, 10))
    swap = frame[frame["source"] == "b"].index[:14]
    frame.loc[swap[:8], "correct"], frame.loc[swap[:8], "other"] = False, True
    frame.loc[swap[8:], "correct"], frame.loc[swap[8:], "other"] = True, False
    b = gate.compare(frame[frame["source"] == "b"], RULE, 0.95, 0)
    assert b["difference"] < -0.03  # large at the point, but chance
    assert b["high"] > 0
    assert rule(frame, {"a", "b"})[0]


def test_few_groups_prove_nothing() -> None:
    assert rule(outcomes(a=(0.4, gate.LEAST - 1)), {"a"})[0] is False
    assert rule(outcomes(a=(0.4, gate.LEAST)), {"a"})[0] is True


def test_looks_share_the_level() -> None:
    frame = outcomes(a=(0.0, 50), n1=(0.0, 50), n2=(0.0, 50))
    trial = Trial(frame, "x", frozenset({"a"}))
    whole, slices = gate.compare_all(trial, RULE, 0)
    assert whole["level"] == pytest.approx(1 - 0.05 / 3)
    assert {k: round(s["level"], 4) for k, s in slices.items()} == {
        "source:a": 0.95,
        "source:n1": 0.9833,
        "source:n2": 0.9833,
    }
    alone, _ = gate.compare_all(replace(trial, known=None), RULE, 0)
    assert alone["level"] == 0.95


def test_without_a_difference_promotion_is_rare() -> None:
    """Two looks, each one-sided at 1.25 %; a little more by the bootstrap."""
    rng, runs, hits = np.random.default_rng(0), 300, 0
    cfg = Promote(bootstrap=400)
    for _ in range(runs):
        frame = outcomes(a=(0, 40), new=(0, 40))
        shift = rng.random((80, 1)) * 0.8 + 0.1  # groups differ in how hard they are
        for side in ("correct", "other"):
            frame[side] = (rng.random((80, 2)) < shift).ravel()
        hits += rule(frame, {"a"}, cfg)[0]
    assert hits <= binom.ppf(0.999, runs, 0.035)


# ---- the stage ---------------------------------------------------------------------------------


def test_the_first_champion_and_the_same_again(first: Paths) -> None:
    result = promote.run(CFG, first)
    assert result["promoted"], result["reason"]
    assert registry.champion(first.registry) == result["candidate"]
    decision = read_json(first.promotion / "decision.json")
    assert decision["champion"] is None
    assert decision["against"] == "the random baseline"
    assert decision["low"] > 0
    before = {p: p.read_bytes() for p in first.registry.rglob("*") if p.is_file()}
    again = promote.run(CFG, first)
    assert not again["promoted"]
    assert "is the champion already" in again["reason"]
    assert {p: p.read_bytes() for p in first.registry.rglob("*") if p.is_file()} == before
    assert len(read_lines(first.registry / registry.LOG)) == 1


def test_the_first_candidate_must_beat_the_baseline(first: Paths) -> None:
    tell_baseline(first, lambda label: label.to_numpy())
    for _ in range(2):
        result = promote.run(CFG, first)
        assert not result["promoted"]
        assert "random baseline" in result["reason"]
    assert registry.champion(first.registry) is None
    assert [e["event"] for e in read_lines(first.registry / registry.LOG)] == ["keep"]


def test_a_baseline_that_was_not_measured_is_named(first: Paths) -> None:
    cfg = Config.model_validate({"promote": {"first_baseline": "pixels"}})
    with pytest.raises(HeadwaterError, match="pixels"):
        promote.run(cfg, first)
    assert not (first.promotion / "decision.json").exists()


def test_what_the_registry_holds(first: Paths) -> None:
    name = promote.run(CFG, first)["candidate"]
    folder = first.registry / "models" / name
    card = registry.verify(first.registry, name)
    assert card["sources"] == ["a", "b"]
    text = (folder / "MODEL_CARD.md").read_text()
    told = read_json(first.promotion / "decision.json")["reason"]
    shards = sha256_file(first.shards / "lineage.json")
    for words in (told, "| linear accuracy |", "images of a, b;", f"| shards | `{shards}` |"):
        assert words in text
    assert card["max_side"] == SIDE
    reference = pd.read_parquet(folder / "reference.parquet")
    assert list(reference.columns) == [
        "sha256",
        "group",
        "source",
        "label",
        "embedding",
        "prediction",
        "confidence",
        "correct",
        "share",
        "images",
    ]
    assert len(reference) == CFG.deploy.reference
    assert reference["group"].is_unique
    index = pd.read_parquet(first.shards / "index.parquet").set_index("key")
    assert (index.loc[reference["sha256"], "split"] == "test").all()
    seen = pd.read_parquet(folder / "seen.parquet")
    train = index[index["split"] == "train"]
    assert set(seen["sha256"]) == set(train.index)
    assert set(seen["group"]) == set(train["group"])
    features = np.load(first.embeddings / "features.npy")
    place = index.index.get_indexer(reference["sha256"])
    np.testing.assert_array_equal(np.stack(reference["embedding"]), features[place])


def test_the_reference_is_drawn_by_content_and_nested(first: Paths) -> None:
    small, large = (
        _entry.reference(CFG.deploy.model_copy(update={"reference": n}), first) for n in (10, 40)
    )
    assert set(small["sha256"]) <= set(large["sha256"])
    whole = _entry.reference(CFG.deploy.model_copy(update={"reference": 1000}), first)
    assert len(whole) == 60  # one of each held-out group


def test_an_equal_challenger_does_not_take_the_place(first: Paths) -> None:
    champion = promote.run(CFG, first)["candidate"]
    build(first, {"a": CLASSES[:3], "b": CLASSES[:3]}, seed=1)
    result = promote.run(CFG, first)
    assert not result["promoted"], result["reason"]
    assert result["champion"] == champion == registry.champion(first.registry)
    promote.run(CFG, first)
    assert [e["event"] for e in read_lines(first.registry / registry.LOG)] == ["promote", "keep"]


def test_classes_the_champion_does_not_know_count_against_it(first: Paths) -> None:
    champion = promote.run(CFG, first)["candidate"]
    build(first, {"a": CLASSES[:3], "b": CLASSES[:3], "c": CLASSES[3:]}, seed=1)
    result = promote.run(CFG, first)
    assert result["promoted"], result["reason"]
    decision = read_json(first.promotion / "decision.json")
    new = decision["slices"]["source:c"]
    assert new["new"]
    assert new["opponent"] == 0
    assert new["candidate"] > 0.9
    assert decision["slices"]["source:a"]["new"] is False
    assert registry.rollback(first.registry, "test") == champion


def test_the_champion_answers_with_its_own_encoder_and_head(first: Paths) -> None:
    champion = promote.run(CFG, first)["candidate"]
    told = pd.read_parquet(first.evaluation / "test_predictions.parquet")
    model = registry.load(first.registry, champion)
    build(first, {"a": CLASSES[:3], "b": CLASSES[:3]}, seed=1)  # same images, other encoder
    found = promote.named_by(model, first, told["sha256"])
    assert found.tolist() == told["prediction"].tolist()
    backwards = promote.named_by(model, first, told["sha256"][::-1])
    assert backwards.tolist() == told["prediction"].tolist()[::-1]


def test_images_the_champion_trained_on_are_left_out(first: Paths) -> None:
    promote.run(CFG, first)
    own = registry.champion(first.registry)
    build(first, {"a": CLASSES[:3], "b": CLASSES[:3]}, seed=1)
    told = pd.read_parquet(first.evaluation / "test_predictions.parquet")
    group, key = told["group"].iloc[0], told.query("group != @told.group.iloc[0]")["sha256"].iloc[0]
    folder = first.registry / "models" / str(own)
    seen = pd.DataFrame({"sha256": [key, "x"], "group": ["y", group]})
    seen.to_parquet(folder / "seen.parquet", index=False)
    card = read_json(folder / registry.CARD)
    card["files"]["seen.parquet"] = registry.sha256_file(folder / "seen.parquet")
    write_json(folder / registry.CARD, card)
    result = promote.run(CFG, first)
    decision = read_json(first.promotion / "decision.json")
    assert decision["excluded"] == 3  # two of the group, and one image
    assert decision["n"] == len(told) - 3
    assert "Left out: 3 test images" in result["reason"]


def test_nothing_fair_to_compare_on_is_an_error(first: Paths) -> None:
    promote.run(CFG, first)
    own = str(registry.champion(first.registry))
    trial = promote.against_champion(first, own)
    assert trial.excluded == 0  # the split kept train and test apart
    flipped = [
        replace(s, split="train" if s.split == "test" else "test")
        for s in samples({"a": CLASSES[:3], "b": CLASSES[:3]}, 120)
    ]
    for file in first.shards.iterdir():
        file.unlink()
    shards.write(first.shards, sorted(flipped, key=lambda s: s.split), 2**20, SIDE)
    write_lineage(first.shards, "shard", {}, {}, {})
    write_encoder(first, 1)
    embed.run(CFG, first)
    evaluate.run(CFG, first)
    with pytest.raises(HeadwaterError, match="trained on every labelled test image"):
        promote.run(CFG, first)


def test_what_was_rolled_back_does_not_return(first: Paths) -> None:
    old = promote.run(CFG, first)["candidate"]
    build(first, {"a": CLASSES[:3], "c": CLASSES[3:]}, seed=1)
    new = promote.run(CFG, first)["candidate"]
    assert registry.rollback(first.registry, "slow on phones") == old
    result = promote.run(CFG, first)
    assert (result["candidate"], result["promoted"]) == (new, False)
    assert "slow on phones" in result["reason"]
    assert registry.champion(first.registry) == old


def test_a_damaged_champion_stops_the_gate(first: Paths) -> None:
    own = promote.run(CFG, first)["candidate"]
    build(first, {"a": CLASSES[:3]}, seed=1)
    (first.registry / "models" / own / models.WEIGHTS).write_bytes(b"")
    with pytest.raises(HeadwaterError, match="checksum"):
        promote.run(CFG, first)
    assert registry.champion(first.registry) == own


def test_products_that_do_not_belong_together_are_refused(first: Paths) -> None:
    write_encoder(first, 7)
    with pytest.raises(HeadwaterError, match="another version of pretrain"):
        promote.run(CFG, first)


def test_the_decision_is_plain_json_and_the_same_twice(first: Paths) -> None:
    tell_baseline(first, lambda label: label.to_numpy())
    promote.run(CFG, first)
    text = (first.promotion / "decision.json").read_text()

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    json.loads(text, parse_constant=refuse)  # NaN is no JSON
    promote.run(CFG, first)
    assert (first.promotion / "decision.json").read_text() == text
    lineage = read_json(first.promotion / "lineage.json")
    assert set(lineage["inputs"]) == {"shards", "pretrain", "embeddings", "evaluation"}
