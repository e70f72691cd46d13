"""Planted changes and what is said of them: the cause, the slice, the images, the words."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_monitor import CFG, DAY, MODEL, label, rows, serve, watched  # noqa: F401

from ssl_core.artifacts import read_json
from ssl_core.config import Paths
from ssl_core.errors import HeadwaterError
from ssl_core.harm import _diagnosis, _quality
from ssl_core.harm._diagnosis import Side
from ssl_core.stages import diagnose

RNG = np.random.default_rng
MEANS = RNG(7).normal(0, 3, (4, 8))  # of three classes, and of one that is new


def side(n: int, seed: int, shares: Any = (1, 1, 1), shift: Any = 0.0, **more: Any) -> Side:
    """Clusters of known classes; the model names each by the nearest known mean."""
    rng = RNG(seed)
    p = np.asarray(shares, float) / sum(shares)
    true = rng.choice(len(p), n, p=p)
    x = MEANS[true] + rng.normal(size=(n, 8)) + shift
    away = np.linalg.norm(x[:, None] - MEANS[None, :3], axis=2)  # (N, 8) -> (N, 3)
    named = away.argmin(1).astype(str)
    quality = np.c_[
        rng.normal(128, 10, n), rng.normal(50, 5, n), rng.normal(1, 0.1, n), rng.normal(30, 3, n)
    ]
    return Side(x.astype(np.float32), named, np.full(n, 0.9), quality, **more)


def of(cause: str, seed: int) -> Side:
    """A day to which this was done."""
    if cause == "label shift":
        return side(240, seed, (8, 1, 1))
    if cause == "new class":
        return side(240, seed, (1, 1, 1, 1))
    if cause == "covariate shift":
        return side(240, seed, shift=RNG(3).normal(0, 1.2, 8))
    half = RNG(seed + 1000).random(240) < 0.4  # apart from the draw of classes
    moved = np.outer(half, RNG(3).normal(0, 1.2, 8))
    if cause == "confounder":
        places = {"folder": np.where(half, "north", "south")}
        return side(240, seed, shift=moved, metadata=places)
    if cause == "quality fault":
        noise = half[:, None] * RNG(seed + 2000).normal(0, 2, (240, 8))
        day = side(240, seed, shift=moved + noise)
        assert day.quality is not None
        day.quality[half, 0] = 40  # brightness
        return day
    return side(240, seed)


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("cause", [*_diagnosis.CAUSES, "none"])
def test_a_planted_cause_is_named(cause: str, seed: int) -> None:
    said, ground, found = _diagnosis.diagnose(side(400, 0), of(cause, seed))
    assert said == cause
    assert ground is not None
    assert all(0 <= h.score <= 1 for h in found)
    if cause == "quality fault":
        assert found[0].evidence["fault"] == "dark"
    if cause == "confounder":
        about = next(h for h in found if h.cause == "confounder").evidence
        assert (about["column"], about["value"]) == ("folder", "north")
    if cause == "label shift":
        assert found[0].evidence["classes"][0]["class"] == "0"
        assert found[0].evidence["auc_after_weighting"] < 0.56


def test_two_causes_at_once_are_called_unknown() -> None:
    both = side(240, 5, (8, 1, 1), shift=RNG(3).normal(0, 0.7, 8))
    said, _, found = _diagnosis.diagnose(side(400, 0), both)
    assert said in ("unknown", "covariate shift")  # never the label shift alone
    assert next(h for h in found if h.cause == "label shift").score < _diagnosis.SURE


def test_a_day_without_change_is_rarely_accused() -> None:
    said = [_diagnosis.diagnose(side(200, 2 * i), side(100, 2 * i + 1))[0] for i in range(12)]
    assert said.count("none") >= 11


def test_few_images_say_nothing() -> None:
    assert _diagnosis.diagnose(side(400, 0), side(_diagnosis.LEAST - 1, 1))[0] == "unknown"


def test_measures_follow_their_definitions() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert _quality.measure(flat) == pytest.approx((100, 0, 0, 0))
    red = flat.copy()
    red[..., 0] = 200
    brightness, _, _, colour = _quality.measure(red)
    assert (brightness, colour) == pytest.approx((100 + 0.299 * 100, 100))
    board = (np.indices((8, 8)).sum(0) % 2 * 100).astype(np.uint8)[..., None].repeat(3, 2)
    # each inner pixel differs from its four neighbours by 100 each; spread is 50
    assert _quality.measure(board)[1:3] == pytest.approx((50, 400 / 51))
    darker = _quality.measure(board // 2)
    assert darker[2] == pytest.approx(200 / 26)


# ---- the stage ---------------------------------------------------------------------------------


def test_the_stage_writes_words_numbers_and_pictures(watched: Paths) -> None:
    frame = rows(100, 101, 0.0, 0.9, "d")
    x = np.stack(frame["embedding"].to_list())
    x[:50] += 2
    names = [f"data/deploy/incoming/{DAY}/{'ab'[i >= 50]}/{i}.png" for i in range(100)]
    serve(watched, path=names, embedding=list(x))
    for name in names:
        file = watched.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 0, 0)).save(file)
    found = diagnose.run(CFG, watched, DAY)
    assert found["cause"] == "confounder"
    assert "folder = a" in found["text"]
    assert found["slices"][0]["slice"] == "folder:a"
    assert all("/a/" in i["path"] for i in found["images"])
    folder = watched.deploy / f"diagnosis/date={DAY}"
    assert read_json(folder / "diagnosis.json") == found
    assert (folder / "images.png").read_bytes().startswith(b"\x89PNG")


def test_a_column_of_the_labels_may_be_the_place(watched: Paths) -> None:
    frame = rows(100, 101, 0.0, 0.9, "d")
    x = np.stack(frame["embedding"].to_list())
    x[::2] += 2
    frame = serve(watched, embedding=list(x))
    label(watched, frame, camera=["left", "right"] * 50)
    found = diagnose.examine(CFG, watched, DAY)
    assert found["cause"] == "confounder"
    assert "camera = left" in found["text"]


def test_a_day_like_the_reference_is_said_to_be_so(watched: Paths) -> None:
    serve(watched)
    found = diagnose.run(CFG, watched, DAY)
    assert found["cause"] == "none"
    assert found["images"] == []
    assert "No change" in found["text"]
    assert not (watched.deploy / f"diagnosis/date={DAY}/images.png").exists()


def test_what_is_missing_is_said(watched: Paths, tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="predict"):
        diagnose.run(CFG, watched, DAY)
    with pytest.raises(HeadwaterError, match="not a day"):
        diagnose.run(CFG, watched, "yesterday")
    serve(watched)
    (watched.registry / "models" / MODEL / "reference.parquet").unlink()
    with pytest.raises(HeadwaterError, match="not in the registry"):
        diagnose.run(CFG, watched, DAY)
