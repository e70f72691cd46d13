"""Which images to label: the sheet, the sample, the way back, and an estimate without bias."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_monitor import CFG, DAY, MODEL, label, rows, serve, watched  # noqa: F401

from ssl_core.artifacts import read_json
from ssl_core.config import Paths
from ssl_core.errors import HeadwaterError
from ssl_core.harm import _request
from ssl_core.stages import _labelled, monitor, request_labels
from ssl_core.stages._days import read_labels, read_predictions

RNG = np.random.default_rng


@pytest.fixture
def asked(watched: Paths) -> Paths:
    """A model that knows what it does not know, and a day of 100 images with files."""
    file = watched.registry / "models" / MODEL / "reference.parquet"
    reference = rows(150, 0, 0, 0.8, "r")
    sure = RNG(0).uniform(0.5, 1, 150)
    right = pd.array(RNG(1).random(150) < sure, dtype="boolean")
    reference.assign(confidence=sure, correct=right).to_parquet(file, index=False)
    frame = serve(watched, accuracy=0.7, confidence=RNG(2).uniform(0.5, 1, 100))
    for name in frame["path"]:
        path = watched.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (0, 0, 200)).save(path)
    return watched


def sample(paths: Paths) -> pd.DataFrame:
    return pd.read_csv(_labelled.requests(paths, DAY) / "sample.csv", dtype={"stratum": str})


def filled(paths: Paths, file: Path, count: int | None = None) -> Path:
    """The sheet's CSV with the truth, "cat"."""
    table = sample(paths)[["path"]].assign(label="cat").head(count)
    table.to_csv(file, index=False)
    return file


def test_the_sheet_holds_exactly_what_is_asked_for(asked: Paths) -> None:
    said = request_labels.run(CFG, asked, DAY, 40)
    table = sample(asked)
    assert len(table) == table["path"].nunique() == said["labels"] == 40
    page = (_labelled.requests(asked, DAY) / "sheet.html").read_text()
    shown = set(re.findall(r"\bd\d+\.png", page))
    assert shown == set(table["path"])
    assert page.count("data:image/") == 40
    assert "://" not in re.sub(r"http://www\.w3\.org/\S+", "", page)  # nothing is fetched
    assert read_json(_labelled.requests(asked, DAY) / "request.json")["images"] == 100
    assert said["expected_width"] <= said["expected_width_uniform"]
    again = request_labels.run(CFG, asked, DAY, 40)
    assert again == said


def test_chances_are_those_of_the_draw(asked: Paths) -> None:
    """inclusion = drawn / size of the stratum, so 1 / inclusion adds up to all images."""
    request_labels.run(CFG, asked, DAY, 40)
    table = sample(asked)
    assert (1 / table["inclusion"]).sum() == pytest.approx(100, rel=1e-6)
    np.testing.assert_allclose(table["weight"] * table["inclusion"], 1, rtol=1e-6)
    for _, part in table.groupby("stratum"):
        assert part["inclusion"].nunique() == 1
        assert len(part) / part["inclusion"].iloc[0] == pytest.approx(
            round(len(part) / part["inclusion"].iloc[0])
        )


def test_the_estimate_has_no_bias_though_the_sample_is_not_alike(asked: Paths) -> None:
    """Over many draws: the mean estimate is the day's true accuracy, the plain mean is not."""
    frame, _ = read_predictions(asked, DAY)
    right = (RNG(9).random(100) < frame["confidence"]).to_numpy()  # errors where it is unsure
    truth = np.where(right, frame["prediction"], "bird")
    by_path = pd.Series(truth, [p.rpartition("/")[2] for p in frame["path"]])
    table = request_labels.candidates(CFG, asked, DAY)
    estimates, plain, draws = [], [], 200
    for seed in range(draws):
        plan = _request.plan(1 - table["confidence"].to_numpy(), 30, RNG(seed))
        drawn = request_labels.drawn(table, plan).astype({"stratum": str})
        drawn["label"] = drawn["path"].map(by_path)
        columns = ["path", "label", "inclusion", "stratum"]
        found = _labelled.join(CFG, asked, DAY, frame, drawn[columns].astype(str))
        assert found is not None
        estimates.append(found.accuracy().value)
        plain.append(found.frame["correct"].mean())
    error = np.std(estimates) / draws**0.5
    # the interval's centre is drawn towards 1/2 by Wilson's rule for few labels, if at all
    assert abs(np.mean(estimates) - right.mean()) < 4 * error
    assert abs(np.mean(plain) - right.mean()) > 4 * error


def test_a_filled_sheet_becomes_labels_once(asked: Paths, tmp_path: Path) -> None:
    request_labels.run(CFG, asked, DAY, 40)
    file = filled(asked, tmp_path / "back.csv")
    done = request_labels.run(CFG, asked, DAY, filled=file)
    assert (done["added"], done["labels"]) == (40, 40)
    again = request_labels.run(CFG, asked, DAY, filled=file)
    assert (again["added"], again["sha256"]) == (0, done["sha256"])
    labels = read_labels(CFG, asked, DAY)
    assert labels is not None
    assert set(labels["path"]) == set(sample(asked)["path"])
    verdict = monitor.judge(CFG, asked, DAY)
    assert verdict["accuracy"]["n"] == 40
    assert verdict["accuracy"]["value"] == pytest.approx(0.7, abs=0.25)


def test_labelled_images_and_copies_are_not_asked_for(asked: Paths) -> None:
    frame = serve(asked, sha256=[f"{i // 2:064d}" for i in range(100)])
    label(asked, frame.head(10))
    found = request_labels.candidates(CFG, asked, DAY)
    assert len(found) == found["sha256"].nunique() == 45


def test_an_answered_request_is_not_replaced(asked: Paths, tmp_path: Path) -> None:
    request_labels.run(CFG, asked, DAY, 40)
    request_labels.run(CFG, asked, DAY, filled=filled(asked, tmp_path / "part.csv", 10))
    with pytest.raises(HeadwaterError, match="answered in part: 10 of 40"):
        request_labels.run(CFG, asked, DAY, 40)


def test_where_nothing_is_there_it_refuses(watched: Paths, tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="predict"):
        request_labels.run(CFG, watched, DAY)
    frame = serve(watched)
    with pytest.raises(HeadwaterError, match="has no labelling request"):
        request_labels.run(CFG, watched, DAY, filled=tmp_path / "x.csv")
    with pytest.raises(HeadwaterError, match="no more than the 100"):
        request_labels.run(CFG, watched, DAY, 100)
    label(watched, frame)
    with pytest.raises(HeadwaterError, match="no image without a label"):
        request_labels.run(CFG, watched, DAY, 10)


def test_a_sheet_that_does_not_fit_is_refused(asked: Paths, tmp_path: Path) -> None:
    request_labels.run(CFG, asked, DAY, 40)
    file = filled(asked, tmp_path / "back.csv")
    table = pd.read_csv(file)
    pd.concat([table, table.head(1).assign(label="dog")]).to_csv(file, index=False)
    with pytest.raises(HeadwaterError, match="more than one label"):
        request_labels.run(CFG, asked, DAY, filled=file)
    pd.DataFrame({"path": ["elsewhere.png"], "label": ["cat"]}).to_csv(file, index=False)
    with pytest.raises(HeadwaterError, match="was not asked for"):
        request_labels.run(CFG, asked, DAY, filled=file)
    filled(asked, file)
    request_labels.run(CFG, asked, DAY, filled=file)
    table.assign(label="dog").to_csv(file, index=False)
    with pytest.raises(HeadwaterError, match="correct one of them"):
        request_labels.run(CFG, asked, DAY, filled=file)
