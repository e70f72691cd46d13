"""Detectors (level, power, exactness), verdicts on days, and what is collected for retraining."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, binomtest
from sklearn.metrics import roc_auc_score

from ssl_core import plugins
from ssl_core.artifacts import read_json
from ssl_core.config import Config, Deploy, Paths
from ssl_core.drift import _common, domain_classifier, mmd
from ssl_core.errors import HeadwaterError
from ssl_core.stages import collect, monitor

RNG = np.random.default_rng
NAMES = plugins.names("drift")
DAY = "2026-03-01"
MODEL = "0123456789ab"


def detector(name: str) -> ModuleType:
    return plugins.load("drift", name)


def test_the_plug_ins_are_these() -> None:
    assert NAMES == ["domain_classifier", "mmd"]
    assert set(Deploy().detectors) == set(NAMES)


# ---- detectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_level_under_the_null(name: str) -> None:
    """With 19 relabellings p <= 0.1 has a chance of exactly 0.1, whatever the data."""
    runs, hits, rng = 150, 0, RNG(0)
    for i in range(runs):
        x, y = rng.normal(size=(30, 6)), rng.normal(size=(20, 6))
        hits += detector(name).score(x, y, RNG(i), 19).p_value <= 0.1
    low, high = binom.interval(0.999, runs, 0.1)
    assert low <= hits <= high


@pytest.mark.parametrize("name", NAMES)
def test_level_with_heavy_tails_and_equal_rows(name: str) -> None:
    runs, hits, rng = 100, 0, RNG(1)
    for i in range(runs):
        pool = rng.standard_t(2, size=(25, 4)).round(0)
        x, y = pool[rng.integers(0, 25, 30)], pool[rng.integers(0, 25, 30)]
        hits += detector(name).score(x, y, RNG(i), 19).p_value <= 0.1
    assert hits <= binom.ppf(0.9995, runs, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_power_at_a_shift_of_one(name: str) -> None:
    rng, found = RNG(2), []
    for i in range(20):
        x, y = rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + 1
        found.append(detector(name).score(x, y, RNG(i), 99).p_value)
    assert np.mean(np.array(found) <= 0.05) >= 0.9
    assert min(found) == 1 / 100


def test_mmd_finds_a_change_of_spread_which_no_mean_shows() -> None:
    rng = RNG(0)
    x, y = rng.normal(size=(150, 3)), 2 * rng.normal(size=(150, 3))
    assert mmd.score(x, y, RNG(0), 199).p_value == 1 / 200


@pytest.mark.parametrize("name", NAMES)
def test_units_and_position_do_not_matter(name: str) -> None:
    x, y = RNG(0).normal(size=(40, 4)), RNG(1).normal(size=(30, 4)) + 0.3
    plain, moved = (
        detector(name).score(a, b, RNG(5), 49) for a, b in ((x, y), (1e3 * x + 7e3, 1e3 * y + 7e3))
    )
    assert moved.statistic == pytest.approx(plain.statistic, rel=1e-6)
    assert moved.p_value == plain.p_value


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_score_and_equal_rows_give_none(name: str) -> None:
    x, y = RNG(0).normal(size=(40, 4)), RNG(1).normal(size=(30, 4))
    assert detector(name).score(x, y, RNG(3), 49) == detector(name).score(x, y, RNG(3), 49)
    flat = detector(name).score(np.ones((20, 3)), np.ones((20, 3)), RNG(0), 49)
    assert flat.p_value == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    good = RNG(0).normal(size=(20, 4))
    bad = good.copy()
    bad[3, 2] = np.nan
    for other, words in ((good[:, :3], "one width"), (good[:1], "too few"), (bad, "not finite")):
        with pytest.raises(HeadwaterError, match=words):
            detector(name).score(good, other, RNG(0), 19)


def brute_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The estimate of Gretton et al., lemma 6, with loops."""
    pooled = np.concatenate([x, y])
    n = len(pooled)
    distances = [np.linalg.norm(pooled[i] - pooled[j]) for i in range(n) for j in range(i)]
    s2 = np.median(np.square(distances))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * s2)))

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    return float(xx + yy - 2 * xy)


@pytest.mark.parametrize(("n", "m"), [(9, 14), (2, 5)])
def test_mmd_is_the_brute_force_estimate_for_every_relabelling(n: int, m: int) -> None:
    x, y = RNG(0).normal(size=(n, 3)), RNG(1).normal(size=(m, 3)) + 0.5
    assert mmd.score(x, y, RNG(0), 9).statistic == pytest.approx(brute_mmd2(x, y))
    pooled = np.concatenate([x, y])
    marks = _common.relabellings(n, n + m, 5, RNG(2))
    found = mmd.mmd2(mmd.kernel(pooled)[0], marks)
    want = [brute_mmd2(pooled[c == 1], pooled[c == 0]) for c in marks.T]
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_mmd_may_be_negative() -> None:
    rng = RNG(0)
    values = [
        mmd.score(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), RNG(0), 1).statistic
        for _ in range(50)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 50**0.5


def test_auc_is_scikit_learns_with_ties() -> None:
    from scipy.stats import rankdata

    margin = RNG(0).integers(0, 5, 40).astype(float)
    marks = _common.relabellings(15, 40, 6, RNG(1))
    found = domain_classifier.auc(rankdata(margin), marks)
    want = [roc_auc_score(c, margin) for c in marks.T]
    np.testing.assert_allclose(found, want)


def test_the_classifier_learns_and_judges_on_different_images() -> None:
    rows = RNG(0).normal(size=(25, 3))
    pooled = rows[np.r_[np.arange(25), np.arange(25)]]  # everything twice
    labels = np.arange(50) % 2
    learn = domain_classifier.halves(pooled, labels, RNG(0))
    assert not {tuple(r) for r in pooled[learn]} & {tuple(r) for r in pooled[~learn]}


def test_relabellings_are_uniform() -> None:
    marks = _common.relabellings(2, 4, 6000, RNG(0))
    assert (marks.sum(0) == 2).all()
    _, counts = np.unique(marks, axis=1, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850
    assert counts.max() < 1150


def test_p_values_count_ties_and_the_observed_itself() -> None:
    assert _common.p_value(1.0, np.array([0.0, 1.0, 2.0, 0.5])) == 3 / 5
    assert _common.p_value(0.3, np.array([0.1 + 0.2])) == 1  # equal but for rounding
    assert _common.p_value(9.0, np.zeros(99)) == 0.01


def test_subsampling_spares_the_smaller_side() -> None:
    big, small = np.arange(1000.0)[:, None], np.arange(50.0)[:, None]
    x, y = _common.subsample(big, small, 200, RNG(0))
    assert (len(x), len(y)) == (150, 50)
    assert len(np.unique(x)) == 150
    x, y = _common.subsample(big, big, 200, RNG(0))
    assert (len(x), len(y)) == (100, 100)


# ---- intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 7), (81, 263)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    want = binomtest(hits, n).proportion_ci(method="wilson")
    assert monitor.wilson(hits, n) == pytest.approx((want.low, want.high), abs=1e-6)


def test_newcombe_is_the_papers() -> None:
    """Newcombe 1998, table II, method 10: 56/70 against 48/80, and 0/10 against 0/20."""
    assert monitor.newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert monitor.newcombe(0, 10, 0, 20) == pytest.approx((-0.1611, 0.2775), abs=5e-5)
    low, high = monitor.newcombe(48, 80, 56, 70)
    assert (-high, -low) == pytest.approx(monitor.newcombe(56, 70, 48, 80))


# ---- verdicts ----------------------------------------------------------------------------------


def settings(**deploy: Any) -> Config:
    base = {"permutations": 199, "min_labels": 20, "reference": 150}
    return Config.model_validate({"deploy": base | deploy})


CFG = settings()


def rows(n: int, seed: int, shift: float, accuracy: float, prefix: str) -> pd.DataFrame:
    x = RNG(seed).normal(size=(n, 6)).astype(np.float32) + np.float32(shift)
    right = np.arange(n) < round(accuracy * n)
    return pd.DataFrame(
        {
            "path": [f"data/deploy/incoming/{DAY}/{prefix}{i}.png" for i in range(n)],
            "sha256": [hashlib.sha256(f"{prefix}{i}".encode()).hexdigest() for i in range(n)],
            "embedding": list(x),
            "prediction": np.where(right, "cat", "dog"),
            "confidence": 0.9,
            "model": MODEL,
            "label": "cat",
        }
    )


@pytest.fixture
def watched(tmp_path: Path) -> Paths:
    """A registry whose model is right on 90 % of 150 reference images."""
    paths = Paths(tmp_path)
    reference = rows(150, 0, 0, 0.9, "r")
    reference["correct"] = pd.array(reference["prediction"] == "cat", dtype="boolean")
    folder = paths.registry / "models" / MODEL
    folder.mkdir(parents=True)
    reference.to_parquet(folder / "reference.parquet", index=False)
    return paths


def serve(
    paths: Paths,
    shift: float = 0.0,
    accuracy: float = 0.9,
    n: int = 100,
    rejected: int = 0,
    date: str = DAY,
) -> pd.DataFrame:
    frame = rows(n, 5, shift, accuracy, "d")
    frame["path"] = frame["path"].str.replace(DAY, date)
    folder = paths.predictions / f"date={date}"
    folder.mkdir(parents=True, exist_ok=True)
    unlabelled = frame.assign(label=pd.Series(pd.NA, frame.index, dtype="str"))  # as predict logs
    unlabelled.to_parquet(folder / "part-0.parquet", index=False)
    bad = pd.DataFrame({"path": ["x"] * rejected, "reason": "empty", "detail": ""})
    bad.to_parquet(folder / "rejects.parquet", index=False)
    return frame


def label(paths: Paths, frame: pd.DataFrame, date: str = DAY, **columns: Any) -> Path:
    file = paths.root / "data/deploy/labels" / f"{date}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"path": frame["path"], "label": frame["label"], **columns})
    table.to_csv(file, index=False)
    return file


@pytest.mark.parametrize(
    ("shift", "accuracy", "labelled", "verdict"),
    [
        (0.0, 0.9, False, "ok"),
        (0.0, 0.9, True, "ok"),
        (1.0, 0.9, False, "drift"),  # changed, and nobody knows whether it hurts
        (1.0, 0.9, True, "drift"),  # changed, and labels say that it does not hurt
        (1.0, 0.5, True, "harm"),
        (0.0, 0.5, True, "harm"),  # labels find what features do not show
        (1.0, 0.5, False, "drift"),  # without labels there is no harm to prove
        (0.0, 0.84, True, "ok"),  # a loss, but not proven to exceed min_drop
    ],
)
def test_verdicts(
    watched: Paths, shift: float, accuracy: float, labelled: bool, verdict: str
) -> None:
    frame = serve(watched, shift, accuracy)
    if labelled:
        label(watched, frame)
    found = monitor.run(CFG, watched, DAY)
    assert found["verdict"] == verdict, found["reason"]
    assert found["drift"] == (shift > 0)
    assert read_json(watched.monitor / f"date={DAY}/verdict.json") == found
    history = monitor.history(watched)
    assert history.loc[0, "verdict"] == verdict
    assert {"p_mmd", "p_domain_classifier", "accuracy", "images", "broken"} <= set(history)


def test_accuracy_is_counted_on_the_labels_that_came(watched: Paths) -> None:
    frame = serve(watched, accuracy=0.8)
    some = frame.iloc[::4]
    label(watched, some)
    found = monitor.judge(CFG, watched, DAY)["accuracy"]
    assert found["n"] == 25
    assert found["value"] == pytest.approx((some["prediction"] == "cat").mean())
    assert found["reference"] == pytest.approx(0.9)
    want = binomtest(int(25 * found["value"]), 25).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((want.low, want.high), abs=1e-6)


def test_images_of_one_group_are_one_piece_of_evidence(watched: Paths) -> None:
    frame = serve(watched, accuracy=0.3)
    label(watched, frame)
    assert monitor.judge(CFG, watched, DAY)["harm"]
    label(watched, frame, group=[f"g{i % 5}" for i in range(100)])
    found = monitor.judge(CFG, watched, DAY)
    assert found["accuracy"]["groups"] == 5
    assert not found["harm"]
    assert "too few to judge" in found["reason"]


def test_labels_may_name_paths_in_three_ways(watched: Paths) -> None:
    frame = serve(watched, n=30)
    short = frame["path"].str.removeprefix(f"data/deploy/incoming/{DAY}/")
    names = [frame["path"].iloc[:10], short.iloc[10:20], f"{DAY}/" + short.iloc[20:]]
    label(watched, frame.assign(path=pd.concat(names)))
    assert monitor.judge(CFG, watched, DAY)["accuracy"]["n"] == 30


def test_unusable_labels_are_refused(watched: Paths) -> None:
    frame = serve(watched)
    twice = pd.concat([frame, frame.iloc[:1].assign(label="dog")])
    label(watched, twice)
    with pytest.raises(HeadwaterError, match="more than one label"):
        monitor.run(CFG, watched, DAY)
    label(watched, frame).write_text("file,class\nx,y\n")
    with pytest.raises(HeadwaterError, match="needs path and label"):
        monitor.run(CFG, watched, DAY)


def test_a_broken_feed_is_not_blamed_on_the_model(watched: Paths) -> None:
    serve(watched, rejected=60)
    found = monitor.judge(CFG, watched, DAY)
    assert found["inputs"]["broken"]
    assert "Check the feed" in found["reason"]
    frame = serve(watched).assign(sha256="same")
    frame.to_parquet(watched.predictions / f"date={DAY}/part-0.parquet", index=False)
    assert monitor.judge(CFG, watched, DAY)["inputs"]["broken"]


def test_false_alarms_over_days_keep_the_promised_rate() -> None:
    """Both detectors together, by Bonferroni: at most alpha per day."""
    cfg = settings(alpha=0.1, permutations=39)
    runs, alarms = 100, 0
    level = monitor.threshold(cfg.deploy)
    assert level == 0.05
    for i in range(runs):
        rng = RNG(1000 + i)
        reference, current = rng.normal(size=(40, 4)), rng.normal(size=(30, 4))
        scores = monitor.detect(cfg, f"day {i}", reference, current)
        alarms += any(s["p_value"] <= level for s in scores.values())
    assert alarms <= binom.ppf(0.999, runs, 0.1)


def test_days_draw_their_own_random_numbers() -> None:
    x, y = RNG(0).normal(size=(40, 4)), RNG(1).normal(size=(30, 4)) + 0.2
    one, again, other = (monitor.detect(CFG, d, x, y) for d in ("a", "a", "b"))
    assert one == again
    assert one["mmd"]["p_value"] != other["mmd"]["p_value"]


def test_permutations_that_cannot_raise_an_alarm_are_refused() -> None:
    with pytest.raises(HeadwaterError, match="at least 199"):
        monitor.threshold(Deploy(alpha=0.01, permutations=198))
    assert monitor.threshold(Deploy(alpha=0.01, permutations=199)) == 0.005


@pytest.mark.parametrize("date", ["2026-3-1", "2026-02-30", "../2026-03-01", "today"])
def test_only_days_are_partitions(watched: Paths, date: str) -> None:
    with pytest.raises(HeadwaterError, match="not a day"):
        monitor.run(CFG, watched, date)


def test_what_is_missing_is_said(watched: Paths) -> None:
    with pytest.raises(HeadwaterError, match="headwater predict"):
        monitor.run(CFG, watched, DAY)
    frame = serve(watched)
    frame.assign(model="../..").to_parquet(watched.predictions / f"date={DAY}/part-0.parquet")
    with pytest.raises(HeadwaterError, match="not in the registry"):
        monitor.run(CFG, watched, DAY)
    frame.assign(model=[MODEL, *["x"] * 99]).to_parquet(
        watched.predictions / f"date={DAY}/part-0.parquet"
    )
    with pytest.raises(HeadwaterError, match="mixes models"):
        monitor.run(CFG, watched, DAY)


# ---- collecting --------------------------------------------------------------------------------


@pytest.fixture
def arrived(watched: Paths) -> Paths:
    """Two predicted days whose files exist, with matching checksums."""
    for date in (DAY, "2026-03-02"):
        frame = serve(watched, n=3, date=date)
        for i, path in enumerate(frame["path"]):
            file = watched.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{date} {i}".encode())
        frame["sha256"] = [
            hashlib.sha256((watched.root / p).read_bytes()).hexdigest() for p in frame["path"]
        ]
        frame.to_parquet(watched.predictions / f"date={date}/part-0.parquet", index=False)
    return watched


def table(paths: Paths, key: str) -> pd.DataFrame:
    file = paths.collected / key / "metadata.csv"
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def test_collected_images_become_a_source(arrived: Paths) -> None:
    frame = pd.read_parquet(arrived.predictions / f"date={DAY}/part-0.parquet")
    label(arrived, frame.iloc[:2], group=["g1", "g2"])
    result = collect.run(CFG, arrived, [DAY, "2026-03-02", DAY], "new")
    want = {"images": 6, "labelled": 2, "days": 2, "folder": "data/collected/new"}
    assert {k: result[k] for k in want} == want
    found = table(arrived, "new")
    assert list(found.columns) == collect.COLUMNS
    assert found["group"].tolist() == ["g1", "g2", "", "", "", ""]
    assert found["label"].tolist() == ["cat", "cat", "", "", "", ""]
    for row in found.itertuples(index=False):
        day, _, name = row.path.partition("/")
        assert day == row.captured_at
        original = arrived.root / CFG.deploy.incoming / day / name
        assert (arrived.collected / "new" / row.path).read_bytes() == original.read_bytes()


def test_collecting_again_renews_labels_but_loses_no_day(arrived: Paths) -> None:
    collect.run(CFG, arrived, [DAY], "k")
    label(arrived, pd.read_parquet(arrived.predictions / f"date={DAY}/part-0.parquet"))
    assert collect.run(CFG, arrived, [DAY, "2026-03-02"], "k")["labelled"] == 3
    with pytest.raises(HeadwaterError, match="already holds 2026-03-02"):
        collect.run(CFG, arrived, [DAY], "k")
    assert len(table(arrived, "k")) == 6


def test_a_changed_or_vanished_image_is_refused(arrived: Paths) -> None:
    file = arrived.root / CFG.deploy.incoming / DAY / "d1.png"
    data = file.read_bytes()
    file.write_bytes(data + b"!")
    with pytest.raises(HeadwaterError, match="changed since it was predicted on"):
        collect.run(CFG, arrived, [DAY], "k")
    file.unlink()
    with pytest.raises(HeadwaterError, match="cannot be read any more"):
        collect.run(CFG, arrived, [DAY], "k")
    assert not (arrived.collected / "k").exists()
    file.write_bytes(data)
    assert collect.run(CFG, arrived, [DAY], "k")["images"] == 3


@pytest.mark.parametrize("key", ["../x", "a/b", "", ".hidden", "a..b", "x" * 65, "a\\b", "a\n"])
def test_unsafe_keys_are_refused(arrived: Paths, key: str) -> None:
    with pytest.raises(HeadwaterError, match="not a plain name"):
        collect.run(CFG, arrived, [DAY], key)
    assert not arrived.collected.exists()


@pytest.mark.parametrize("name", ["../../../../evil.png", "a/../../x.png", "a::b.png", "a\\b.png"])
def test_unsafe_paths_in_a_log_are_refused(arrived: Paths, name: str) -> None:
    file = arrived.predictions / f"date={DAY}/part-0.parquet"
    frame = pd.read_parquet(file)
    frame.loc[0, "path"] = f"{CFG.deploy.incoming}/{DAY}/{name}"
    frame.to_parquet(file, index=False)
    with pytest.raises(HeadwaterError, match="not a safe file name"):
        collect.run(CFG, arrived, [DAY], "k")


def test_no_days_and_days_without_predictions_are_refused(arrived: Paths) -> None:
    with pytest.raises(HeadwaterError, match="are none"):
        collect.run(CFG, arrived, [], "k")
    with pytest.raises(HeadwaterError, match="does not exist"):
        collect.run(CFG, arrived, [DAY, "2026-03-09"], "k")
