"""Verdicts on days: drift, harm where labels came, and the feed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from ssl_core.artifacts import read_json
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.stages import monitor

RNG = np.random.default_rng
DAYS = [f"2026-03-0{i}" for i in range(1, 8)]
DAY = DAYS[0]
MODEL = "0123456789ab"


def settings(**deploy: Any) -> Config:
    base = {"detectors": ["mmd"], "permutations": 49, "min_labels": 20, "reference": 150}
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


def register(paths: Paths, model: str = MODEL) -> None:
    """A model that is right on 90 % of 150 reference images."""
    reference = rows(150, 0, 0, 0.9, "r")
    reference["correct"] = pd.array(reference["prediction"] == "cat", dtype="boolean")
    folder = paths.registry / "models" / model
    folder.mkdir(parents=True)
    reference.to_parquet(folder / "reference.parquet", index=False)


@pytest.fixture
def watched(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    register(paths)
    return paths


def serve(
    paths: Paths,
    shift: float = 0.0,
    accuracy: float = 0.9,
    n: int = 100,
    rejected: int = 0,
    date: str = DAY,
    **columns: Any,
) -> pd.DataFrame:
    frame = rows(n, int(date[-2:]) + 100, shift, accuracy, "d").assign(**columns)
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
    serve(watched, date=DAYS[0])
    for day in DAYS[1:4]:
        frame = serve(watched, shift, accuracy, date=day)
    if labelled:
        label(watched, frame, day)
    found = monitor.run(CFG, watched, day)
    assert found["verdict"] == verdict, found["reason"]
    assert found["drift"] == (shift > 0)
    assert read_json(watched.monitor / f"date={day}/verdict.json") == found
    history = monitor.history(watched)
    assert history.loc[0, "verdict"] == verdict
    assert {"p_mmd", "evidence", "alarm", "since", "accuracy", "images", "broken"} <= set(history)
    if shift:
        assert found["evidence"]["since"] == DAYS[1]
        assert found["evidence"]["value"] > found["evidence"]["threshold"] == 20


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
    serve(watched, sha256="same")
    assert monitor.judge(CFG, watched, DAY)["inputs"]["broken"]


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
