"""Serving: what is logged, what is rejected, and that serving sees what training saw."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_promote import CFG, CLASSES, build, samples
from typer.testing import CliRunner

from ssl_core import __main__ as command
from ssl_core import registry
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.stages import _days, collect, monitor, predict, promote

DAY = "2026-03-01"
COLUMNS = ["path", "sha256", "embedding", "prediction", "confidence", "model"]
COLUMNS += ["brightness", "contrast", "sharpness", "colour", "bytes", "group", "label"]
SOURCES = {"a": CLASSES[:3], "b": CLASSES[:3]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project with a champion; the day's images are those of the held-out split."""
    paths = Paths(tmp_path_factory.mktemp("project"))
    build(paths, SOURCES, seed=0, groups=48)
    assert promote.run(CFG, paths)["promoted"]
    for sample in samples(SOURCES, 48):
        if sample.split == "test":
            file = paths.root / CFG.deploy.incoming / DAY / sample.source / f"{sample.key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample.image)
    return paths


def log(paths: Paths, day: str = DAY) -> pd.DataFrame:
    return pd.read_parquet(paths.predictions / f"date={day}" / "part-0.parquet")


def arrive(paths: Paths, day: str, **files: bytes) -> Path:
    folder = paths.root / CFG.deploy.incoming / day
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def png(side: int = 16, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "PNG")
    return out.getvalue()


def test_the_log_has_the_columns_that_monitor_and_collect_read(served: Paths) -> None:
    result = predict.run(CFG, served, DAY)
    frame = log(served)
    assert list(frame.columns) == COLUMNS
    assert result["images"] == len(frame) == 48
    assert frame["path"].is_monotonic_increasing
    assert frame["path"].str.startswith(f"{CFG.deploy.incoming}/{DAY}/").all()
    for row in frame.itertuples(index=False):
        data = (served.root / row.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.sha256
    assert set(frame["model"]) == {registry.champion(served.registry)}
    assert frame["confidence"].between(1 / 3, 1).all()
    assert frame["label"].isna().all()
    assert _days.read_predictions(served, DAY)[1] == 0


def test_serving_sees_what_training_saw(served: Paths) -> None:
    """The same images give the same features by both ways, or every day would look drifted."""
    predict.run(CFG, served, DAY)
    told = pd.read_parquet(served.evaluation / "test_predictions.parquet").set_index("sha256")
    features = np.load(served.embeddings / "features.npy")
    index = pd.read_parquet(served.embeddings / "index.parquet")["sha256"]
    frame = log(served)
    own = features[pd.Index(index).get_indexer(frame["sha256"])]
    np.testing.assert_allclose(np.stack(frame["embedding"]), own, atol=1e-5)
    assert frame["prediction"].tolist() == told.loc[frame["sha256"], "prediction"].tolist()


@pytest.mark.parametrize("size", [1, 7, 48])
def test_the_batch_makes_no_difference(served: Paths, size: int) -> None:
    predict.run(CFG, served, DAY)
    whole = log(served)
    cfg = CFG.model_copy(update={"embed": CFG.embed.model_copy(update={"batch_size": size})})
    predict.run(cfg, served, DAY)
    part = log(served)
    np.testing.assert_allclose(np.stack(part["embedding"]), np.stack(whole["embedding"]), atol=1e-5)
    pd.testing.assert_frame_equal(
        part.drop(columns=["embedding", "confidence"]),
        whole.drop(columns=["embedding", "confidence"]),
    )


def test_large_images_are_scaled_as_for_the_shards(served: Paths) -> None:
    arrive(served, "2026-03-02", **{"small.png": png(16), "large.png": png(160)})
    predict.run(CFG, served, "2026-03-02")
    small, large = np.stack(log(served, "2026-03-02")["embedding"])
    np.testing.assert_allclose(small, large, atol=1e-4)


def test_what_cannot_be_read_is_listed_and_never_stops_the_day(served: Paths) -> None:
    data = png(32)
    folder = arrive(
        served,
        "2026-03-03",
        **{
            "a.png": data,
            "cut.png": data[: len(data) // 2],
            "text.png": b"hello",
            "empty.png": b"",
            "notes.txt": b"x",
            ".hidden": b"x",
        },
    )
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / ".cache").mkdir()
    (folder / ".cache/x.png").write_bytes(data)
    result = predict.run(CFG, served, "2026-03-03")
    assert (result["images"], result["rejected"]) == (1, 5)
    file = served.predictions / "date=2026-03-03/rejects.parquet"
    rejects = pd.read_parquet(file).set_index("path")
    assert list(rejects.columns) == ["reason", "detail"]
    reasons = {Path(k).name: v for k, v in rejects["reason"].items()}
    assert reasons == {
        "cut.png": "truncated",
        "text.png": "not-an-image",
        "empty.png": "empty",
        "notes.txt": "not-an-image",
        "loop.png": "symlink-loop",
    }


def test_pixels_beyond_the_limit_are_refused_before_decoding(served: Paths) -> None:
    arrive(served, "2026-03-04", **{"x.png": png(40)})
    cfg = CFG.model_copy(update={"data": CFG.data.model_copy(update={"max_pixels": 1000})})
    assert predict.run(cfg, served, "2026-03-04")["rejected"] == 1


def test_a_day_without_images_is_an_empty_log(served: Paths) -> None:
    predict.run(CFG, served, DAY)
    arrive(served, "2026-03-05")
    result = predict.run(CFG, served, "2026-03-05")
    assert (result["images"], result["rejected"]) == (0, 0)
    frame = log(served, "2026-03-05")
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 0
    for name in ("path", "prediction", "confidence"):
        assert frame[name].dtype == log(served)[name].dtype
    verdict = monitor.judge(CFG, served, "2026-03-05")
    assert verdict["inputs"]["broken"]


def test_labels_that_are_known_already_are_logged(served: Paths) -> None:
    folder = served.root / CFG.deploy.labels
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{DAY}.csv"
    day = f"{CFG.deploy.incoming}/{DAY}/"
    one, unlabelled = log(served)["path"].str.removeprefix(day).sort_values()[:2]
    other = log(served)["path"].str.removeprefix(day).max()
    file.write_text(f"path,label\n{one},red\n{day}{other},blue\n{unlabelled},\n")
    predict.run(CFG, served, DAY)
    frame = log(served)
    known = frame.dropna(subset="label")
    names = known["path"].str.removeprefix(day)
    assert dict(zip(names, known["label"], strict=True)) == {one: "red", other: "blue"}
    file.unlink()
    predict.run(CFG, served, DAY)
    assert log(served)["label"].isna().all()
    assert log(served)["label"].dtype == frame["label"].dtype


def test_serving_again_gives_the_same_bytes(served: Paths) -> None:
    predict.run(CFG, served, DAY)
    folder = served.predictions / f"date={DAY}"
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert set(before) == {"part-0.parquet", "rejects.parquet", "lineage.json"}
    predict.run(CFG, served, DAY)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_a_crash_leaves_the_old_log(served: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    predict.run(CFG, served, DAY)
    before = log(served)

    def crash(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(predict, "with_labels", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        predict.run(CFG, served, DAY)
    pd.testing.assert_frame_equal(log(served), before)
    assert not list(served.predictions.glob(".*"))


def test_a_shadow_run_leaves_the_served_log_alone(served: Paths) -> None:
    predict.run(CFG, served, DAY)
    before = (served.predictions / f"date={DAY}/part-0.parquet").stat().st_mtime_ns
    name = str(registry.champion(served.registry))
    assert predict.run(CFG, served, DAY, name)["model"] == name
    shadow = served.deploy / "shadow" / name / f"date={DAY}" / "part-0.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(shadow), log(served))
    assert (served.predictions / f"date={DAY}/part-0.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["../../x", "0123456789ab"])
def test_a_model_that_is_not_registered_is_refused(served: Paths, name: str) -> None:
    with pytest.raises(HeadwaterError, match="not in the registry"):
        predict.run(CFG, served, DAY, name)


def test_what_is_missing_is_said(served: Paths, tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="not a day"):
        predict.run(CFG, served, "../2026-03-01")
    with pytest.raises(HeadwaterError, match="does not exist"):
        predict.run(CFG, served, "2031-01-01")
    with pytest.raises(HeadwaterError, match="headwater promote"):
        predict.run(CFG, Paths(tmp_path), DAY)


def test_the_log_feeds_monitor_and_collect(served: Paths) -> None:
    predict.run(CFG, served, DAY)
    cfg = Config.model_validate(
        {
            **CFG.model_dump(by_alias=True),
            "deploy": {"permutations": 99},
        }
    )
    verdict = monitor.run(cfg, served, DAY)
    assert verdict["verdict"] == "ok", verdict["reason"]  # they are the reference's own images
    found = collect.run(cfg, served, [DAY], "new")
    assert found["images"] == 48
    assert len(list((served.collected / "new").rglob("*.png"))) == 48


def test_the_command_takes_a_model(served: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served.root)
    name = str(registry.champion(served.registry))
    runner = CliRunner()
    done = runner.invoke(command.app, ["predict", DAY, "--model", name, "--json"])
    assert done.exit_code == 0, done.output
    assert name in done.output
    refused = runner.invoke(command.app, ["predict", DAY, "--model", "nonsense"])
    assert isinstance(refused.exception, HeadwaterError)
