"""Validation: planted bad rows are quarantined, bad data sets fail, each rule can fail alone."""

from __future__ import annotations

import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import photo_tiles
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from ssl_core.artifacts import read_json
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.stages import _gate, ingest, validate
from ssl_core.validation._gx import CRITICAL, Outcome

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LIMITS = {"min_images": 10, "min_classes": 2, "max_unlabelled_share": 0.5, "max_reject_share": 0.2}
CONFIG = Config.model_validate({"validate": LIMITS, "data": {"min_side": 16, "max_pixels": 2500}})


def frame_of(count: int = 20) -> pd.DataFrame:
    """A manifest without fault."""
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    frame = pd.DataFrame(
        {
            "path": [f"p{i:03d}.png" for i in range(count)],
            "sha256": digests,
            "phash": [d[:16] for d in digests],
            "width": 50,
            "height": 50,
            "mode": "RGB",
            "format": "PNG",
            "bytes": 1000,
            "label": ["cat", "dog"] * (count // 2),
            "group": digests,
            "source": "s",
            "captured_at": ["2026-01-01", "2026-01-01T10:00:00+02:00", None, None] * (count // 4),
        }
    )
    return frame.astype(ingest.COLUMNS)


def judge(frame: pd.DataFrame, rejected: int = 0) -> tuple[list[Outcome], pd.DataFrame]:
    return validate.judge(frame, rejected, CONFIG, NOW)


def failed(outcomes: list[Outcome], severity: str | None = None) -> list[str]:
    return [o.rule.name for o in outcomes if not o.success and severity in (None, o.rule.severity)]


def test_a_good_manifest_passes_every_rule() -> None:
    outcomes, bad = judge(frame_of(), rejected=5)  # 5 of 25: exactly the limit
    assert failed(outcomes) == []
    assert bad.to_dict("list") == {"path": [], "reason": []}
    assert len({o.rule.name for o in outcomes}) == len(outcomes) == 24
    assert all(o.record()["unexpected"] == 0 for o in outcomes)


# ---- single rows -------------------------------------------------------------------------------

ROWS: list[tuple[str, dict[int, Any], str]] = [
    ("sha256", {3: "xyz", 5: "A" * 64}, "sha256 is 64 hex digits"),
    ("sha256", {3: None}, "sha256 is present"),
    ("phash", {0: "0123"}, "phash is 16 hex digits"),
    ("group", {19: None, 4: None}, "group is present"),
    ("source", {1: None}, "source is present"),
    ("path", {6: "p001.png"}, "path is unique"),
    ("width", {2: 15}, "width is at least 16 pixels"),
    ("height", {2: 15, 8: 15}, "height is at least 16 pixels"),
    ("height", {7: 51}, "area is at most 2,500 pixels"),
]


@pytest.mark.parametrize(("column", "changes", "rule"), ROWS, ids=lambda v: str(v)[:20])
def test_a_bad_row_is_quarantined_and_the_rest_goes_on(
    column: str, changes: dict[int, Any], rule: str
) -> None:
    frame = frame_of()
    for row, value in changes.items():
        frame.loc[row, column] = value
    outcomes, bad = judge(frame)
    assert failed(outcomes) == [rule]
    assert failed(outcomes, CRITICAL) == []
    assert set(bad["path"]) == set(frame["path"].iloc[list(changes)])
    assert set(bad["reason"]) == {f"not so: {rule}"}
    record = next(o.record() for o in outcomes if not o.success)
    expected = 2 if column == "path" else len(changes)  # of two equal paths both are doubtful
    assert record["unexpected"] == expected
    assert frame["path"].iloc[min(changes)] in record["detail"]


def test_a_row_is_quarantined_once_for_its_first_fault() -> None:
    frame = frame_of()
    frame.loc[4, ["sha256", "width"]] = ["bad", 3]
    frame.loc[5, "width"] = 3
    _, bad = judge(frame)
    assert bad["path"].tolist() == ["p004.png", "p005.png"]
    assert bad["reason"].tolist() == [
        "not so: sha256 is 64 hex digits",
        "not so: width is at least 16 pixels",
    ]


def test_dates_only_warn() -> None:
    frame = frame_of()
    frame["captured_at"] = ["2026-06-02", "2026-06-03", "2031-01-01T00:00:00", "soon"] * 5
    outcomes, bad = judge(frame)
    assert failed(outcomes) == [
        "captured_at is an ISO 8601 date",
        "captured_at is not in the future",
    ]
    assert [o.record()["unexpected"] for o in outcomes if not o.success] == [5, 10]
    assert failed(outcomes, CRITICAL) == []
    assert len(bad) == 0


# ---- the whole ---------------------------------------------------------------------------------


def unlabelled(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    frame.loc[: count - 1, "label"] = None
    return frame


def rows_broken(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    frame.loc[: count - 1, "width"] = 1
    return frame


WHOLES = [
    (frame_of(8), 0, "at least 10 images", "found 8"),
    (frame_of().assign(label="cat"), 0, "at least 2 classes", "found 1"),
    (unlabelled(frame_of(), 11), 0, "at most 50.0% of the images are unlabelled", "found 0.55"),
    (frame_of(), 6, "at most 20.0% of the files are rejected or quarantined", "found 0.230769"),
]


@pytest.mark.parametrize(("frame", "rejected", "rule", "detail"), WHOLES, ids=range(4))
def test_a_bad_data_set_fails_the_one_rule_it_breaks(
    frame: pd.DataFrame, rejected: int, rule: str, detail: str
) -> None:
    outcomes, bad = judge(frame, rejected)
    assert failed(outcomes) == failed(outcomes, CRITICAL) == [rule]
    assert [o.record() for o in outcomes if not o.success] == [
        {
            "suite": "labels" if "class" in rule or "unlabelled" in rule else "manifest",
            "name": rule,
            "severity": "critical",
            "success": False,
            "unexpected": 1,
            "detail": detail,
        }
    ]
    assert len(bad) == 0


def test_what_lies_exactly_at_a_limit_passes() -> None:
    assert failed(judge(frame_of(12)[:10])[0]) == []
    assert failed(judge(unlabelled(frame_of(), 10))[0]) == []


def test_quarantined_rows_count_as_lost() -> None:
    outcomes, bad = judge(rows_broken(frame_of(), 4))
    assert len(bad) == 4
    assert failed(outcomes, CRITICAL) == []  # 4 of 20
    outcomes, _ = judge(rows_broken(frame_of(), 5))
    assert failed(outcomes, CRITICAL) == ["at most 20.0% of the files are rejected or quarantined"]
    outcomes, bad = judge(rows_broken(frame_of(), 20))
    assert len(bad) == 20
    assert "at least 10 images" in failed(outcomes, CRITICAL)


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_other_columns_fail_and_nothing_else_is_asked(change: str) -> None:
    frame = frame_of()
    frame = frame.drop(columns="group") if change == "missing" else frame.assign(colour="red")
    outcomes, bad = judge(frame)
    assert failed(outcomes, CRITICAL) == ["the manifest has its columns"]
    assert len(outcomes) == 1
    details = {"missing": "missing: group", "surplus": "unexpected: colour"}
    assert outcomes[0].detail == details[change]
    assert len(bad) == 0


# ---- the stage ---------------------------------------------------------------------------------


def prepare(project: Path, **limits: Any) -> tuple[Config, Paths]:
    cfg = load(project / "params.yaml", {f"validate.{k}": v for k, v in limits.items()})
    ingest.run(cfg, Paths(project))
    return cfg, Paths(project)


def test_the_report_has_its_form_and_equal_inputs_give_equal_bytes(project: Path) -> None:
    cfg, paths = prepare(project)
    counts = validate.run(cfg, paths)
    report = read_json(paths.validation / "report.json")
    assert set(report) == {"success", "expectations", "issues", "counts"}
    assert report["success"] is counts["success"] is True
    for record in report["expectations"]:
        assert set(record) == {"suite", "name", "severity", "success", "unexpected", "detail"}
        assert record["severity"] in ("critical", "warning")
    assert set(report["issues"]) == set(validate.ISSUES)
    frame = pd.read_parquet(paths.validation / "issues.parquet")
    manifest = pd.read_parquet(paths.manifest / "manifest.parquet")
    assert frame[["path", "sha256"]].equals(manifest[["path", "sha256"]])
    assert set(frame.dtypes[list(validate.ISSUES)].astype(str)) == {"bool"}
    assert {n: int(frame[n].sum()) for n in validate.ISSUES} == report["issues"]
    assert len(pd.read_parquet(paths.validation / "quarantine.parquet")) == 0
    _gate.require_valid(paths)
    first = {p.name: p.read_bytes() for p in paths.validation.iterdir()}
    assert set(first) == {
        "report.json",
        "quarantine.parquet",
        "issues.parquet",
        "lineage.json",
    }
    validate.run(cfg, paths)
    assert {p.name: p.read_bytes() for p in paths.validation.iterdir()} == first
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_a_failed_validation_is_written_and_stops_the_next_stage(project: Path) -> None:
    cfg, paths = prepare(project, min_images=10_000)
    counts = validate.run(cfg, paths)
    assert counts["success"] is False
    assert counts["failed"] == 1
    with pytest.raises(HeadwaterError, match="at least 10000 images: failed"):
        _gate.require_valid(paths)
    assert (paths.validation / "issues.parquet").exists()
    assert validate.run(load(project / "params.yaml"), paths)["success"] is True
    _gate.require_valid(paths)


def test_rejected_files_count(project: Path) -> None:
    total = len(list((project / "images").rglob("*.png")))
    for i in range(total // 2):
        (project / f"images/flower/bad{i}.png").write_bytes(b"")
    cfg, paths = prepare(project)
    counts = validate.run(cfg, paths)
    assert counts["rejected"] == total // 2
    assert counts["success"] is False
    with pytest.raises(HeadwaterError, match="rejected or quarantined: failed"):
        _gate.require_valid(paths)


def test_a_quarantined_row_is_not_looked_at(project: Path) -> None:
    cfg, paths = prepare(project)
    frame = pd.read_parquet(paths.manifest / "manifest.parquet")
    frame.loc[5, "phash"] = "?"
    frame.to_parquet(paths.manifest / "manifest.parquet")
    (project / frame["path"][5]).unlink()
    counts = validate.run(cfg, paths)
    assert counts["success"] is True
    assert (counts["quarantined"], counts["examined"]) == (1, len(frame) - 1)
    bad = pd.read_parquet(paths.validation / "quarantine.parquet")
    assert bad.to_dict("list") == {
        "path": [frame["path"][5]],
        "reason": ["not so: phash is 16 hex digits"],
    }
    (project / frame["path"][6]).write_bytes(b"changed")
    assert validate.run(cfg, paths) == counts  # what was measured is not read again
    shutil.rmtree(paths.runs)
    with pytest.raises(HeadwaterError, match="was readable at ingest and is not now"):
        validate.run(cfg, paths)


def test_without_a_manifest_the_stage_says_so(project: Path) -> None:
    with pytest.raises(HeadwaterError, match="run stage ingest first"):
        validate.run(Config(), Paths(project))


# ---- pictures ----------------------------------------------------------------------------------


def planted() -> dict[str, Image.Image]:
    """One picture for each issue, made from real ones."""
    tile = Image.fromarray(photo_tiles()[1][1])
    photo = Image.fromarray(load_sample_images().images[1])
    pixels = np.asarray(tile).astype(float)
    return {
        "dark": Image.fromarray((pixels * 0.1).astype(np.uint8)),
        "light": Image.fromarray((250 + pixels / 64).astype(np.uint8)),
        "blurry": photo.resize((48, 48)).filter(ImageFilter.GaussianBlur(2)),
        "low_information": Image.new("RGB", (48, 48), (90, 120, 200)),
        "odd_aspect_ratio": photo.resize((120, 20)),
        "odd_size": tile.resize((480, 480)),
    }


def test_each_planted_issue_is_found_and_good_photos_are_left_alone(project: Path) -> None:
    cfg, paths = prepare(project)
    validate.run(cfg, paths)
    before = pd.read_parquet(paths.validation / "issues.parquet").set_index("path")
    for name, image in planted().items():
        image.save(project / f"images/{name}.png")
    ingest.run(cfg, paths)
    counts = validate.run(cfg, paths)
    after = pd.read_parquet(paths.validation / "issues.parquet").set_index("path")
    for name in validate.ISSUES:
        assert after.loc[f"images/{name}.png", name], name
        assert not after.loc[f"images/{name}.png", list(validate.ISSUES)].all()
    assert after.loc[before.index, list(validate.ISSUES)].equals(before[list(validate.ISSUES)])
    assert before["odd_size"].sum() == before["odd_aspect_ratio"].sum() == 0
    assert before["low_information"].sum() == 0
    assert counts["success"] is True  # issues are for people to look at


def test_size_and_shape_are_those_of_the_files_not_of_what_is_looked_at(tmp_path: Path) -> None:
    sides = [(200, 200)] * 12 + [(3000, 3000)]  # all are looked at with 128 pixels
    for i, size in enumerate(sides):
        Image.new("L", size, 100).save(tmp_path / f"{i:02d}.png")
    cfg = Config.model_validate({"data": {"sources": [str(tmp_path)]}})
    paths = Paths(tmp_path / "project")
    ingest.run(cfg, paths)
    validate.run(cfg, paths)
    found = pd.read_parquet(paths.validation / "issues.parquet")
    assert found["odd_size"].tolist() == [False] * 12 + [True]


def test_of_very_many_images_those_of_least_sha256_are_looked_at(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "SAMPLE", 30)
    cfg, paths = prepare(project)
    counts = validate.run(cfg, paths)
    manifest = pd.read_parquet(paths.manifest / "manifest.parquet")
    issues = pd.read_parquet(paths.validation / "issues.parquet")
    assert counts["examined"] == 30 < counts["images"]
    assert set(issues["sha256"]) == set(manifest["sha256"].sort_values()[:30])
    assert issues["path"].is_monotonic_increasing
