"""Ingest on planted folders: every bad file counted with its reason, every good one kept."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import imagehash
import pandas as pd
import pytest
from conftest import headwater
from PIL import Image
from test_images import BAD, SMALL, encode

from ssl_core import images
from ssl_core.artifacts import read_json
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.stages import ingest


def config(*sources: str, **data: object) -> Config:
    return Config.model_validate({"data": {"sources": list(sources) or ["images"], **data}})


def manifest(root: Path) -> pd.DataFrame:
    return pd.read_parquet(Paths(root).manifest / "manifest.parquet")


def rejects(root: Path) -> pd.DataFrame:
    return pd.read_parquet(Paths(root).manifest / "rejects.parquet")


def age(root: Path) -> None:
    """Files must have settled before the cache trusts their times."""
    for file in root.rglob("*"):
        os.utime(file, ns=(10**18, 10**18))


def test_the_manifest_describes_every_image(project: Path) -> None:
    counts = ingest.run(config(), Paths(project))
    frame = manifest(project)
    assert frame.dtypes.astype(str).to_dict() == ingest.COLUMNS
    assert frame["path"].tolist() == sorted(
        p.relative_to(project).as_posix() for p in (project / "images").rglob("*.png")
    )
    for row in frame.sample(10, random_state=0).itertuples():
        data = (project / row.path).read_bytes()
        assert row.sha256 == row.group == hashlib.sha256(data).hexdigest()
        assert row.phash == str(imagehash.phash(Image.open(project / row.path)))
        assert (row.width, row.height, row.mode, row.format) == (48, 48, "RGB", "PNG")
        assert (row.bytes, row.source) == (len(data), "images")
        assert row.label == Path(row.path).parent.name
    assert frame["captured_at"].isna().all()
    assert len(rejects(project)) == 0
    assert rejects(project).dtypes.astype(str).to_dict() == ingest.REJECTS
    assert (counts["found"], counts["kept"], counts["rejected"]) == (len(frame), len(frame), 0)
    assert counts["by_reason"] == {}


def plant_bad(root: Path) -> dict[str, int]:
    """Every kind of bad file once, and a few more; how many there are of each reason."""
    expected: dict[str, int] = {}
    for name, (data, reason) in BAD.items():
        (root / f"bad {name}.png").write_bytes(data)
        expected[reason] = expected.get(reason, 0) + 1
    (root / "tiny.png").write_bytes(encode("PNG", SMALL[:15, :40]))
    (root / "loop").symlink_to(".")
    (root / "escape.png").symlink_to("/etc/passwd")
    return expected | {"too-small": 1, "symlink-loop": 1, "unsafe-path": 1}


def test_bad_files_are_counted_rejects_and_cost_no_good_one(project: Path) -> None:
    ingest.run(config(), Paths(project))
    before = manifest(project)
    expected = plant_bad(project / "images/temple")
    counts = ingest.run(config(), Paths(project))
    assert counts["by_reason"] == expected
    assert counts["rejected"] == sum(expected.values()) == len(BAD) + 3
    assert counts["found"] == counts["kept"] + counts["rejected"]
    assert manifest(project).equals(before)
    listed = rejects(project)
    assert listed["reason"].value_counts().to_dict() == expected
    row = listed.set_index("path").loc["images/temple/bad cmyk-jpeg.png"]
    assert (row["reason"], row["detail"]) == ("cmyk", "printing colours without a known profile")
    lineage = read_json(Paths(project).manifest / "lineage.json")
    assert lineage["counts"]["by_reason"] == expected


def test_strange_names_and_missing_labels_are_no_reason_to_refuse(project: Path) -> None:
    names = ["ünï cödé.png", "図.png", "emoji 🦊.png", "new\nline.png", "quote\"'.png", "UPPER.PNG"]
    for i, name in enumerate(names):
        (project / "images" / name).write_bytes(encode("PNG", SMALL[i:]))
    counts = ingest.run(config(), Paths(project))
    frame = manifest(project).set_index("path")
    assert counts["rejected"] == 0
    assert counts["unlabelled"] == len(names)
    assert frame.loc[[f"images/{n}" for n in names], "label"].isna().all()
    assert frame["group"].notna().all()
    assert frame["source"].notna().all()


def test_equal_inputs_give_equal_bytes(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plant_bad(project / "images/flower")
    other = tmp_path_factory.mktemp("other")
    files = [p for p in (project / "images").rglob("*") if not p.is_dir() or p.is_symlink()]
    for file in reversed(files):  # written in another order, at another time
        copy = other / file.relative_to(project)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            copy.symlink_to(os.readlink(file))
        else:
            copy.write_bytes(file.read_bytes())
    found = []
    for root in (project, other, project):  # the third time from the cache
        age(project / "images" / "temple")
        ingest.run(config(), Paths(root))
        folder = Paths(root).manifest
        found.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert found[0].keys() == {"manifest.parquet", "rejects.parquet", "lineage.json"}
    assert found[0] == found[1] == found[2]
    assert str(project).encode() not in found[0]["lineage.json"]


def test_metadata_reaches_the_manifest_and_bad_dates_are_counted(project: Path) -> None:
    folder = project / "set"
    folder.mkdir()
    dates = ["2026-03-01", "2026-03-01T10:00:00+02:00", "yesterday", "", "20260301", "2026-13-01"]
    rows = ["path,label,group,source,captured_at"]
    for i, date in enumerate(dates):
        (folder / f"{i}.png").write_bytes(encode("PNG", SMALL[i:]))
        rows.append(f"{i}.png,x,g{i // 2},cam,{date}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    counts = ingest.run(config("set"), Paths(project))
    frame = manifest(project)
    assert counts["bad_captured_at"] == 2
    assert frame["captured_at"].fillna("").tolist() == [
        "2026-03-01",
        "2026-03-01T10:00:00+02:00",
        "",
        "",
        "2026-03-01",
        "",
    ]
    assert frame["group"].tolist() == ["g0", "g0", "g1", "g1", "g2", "g2"]
    assert counts["groups"] == 3
    assert counts["by_source"] == {"cam": 6}


def test_a_ref_that_is_listed_twice_counts_once(project: Path) -> None:
    counts = ingest.run(config("images", "images/flower", "images"), Paths(project))
    total = len(list((project / "images").rglob("*.png")))
    again = len(list((project / "images/flower").rglob("*.png")))
    assert counts["kept"] == total
    assert counts["by_reason"] == {"duplicate-key": total + again}
    assert set(manifest(project)["source"]) == {"images"}  # the first entry's
    ingest.run(config("images/temple", "images/flower"), Paths(project))
    assert manifest(project)["path"].is_monotonic_increasing


# ---- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refs whose bytes were read."""
    refs: list[str] = []
    real = images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda ref, root: refs.append(ref) or real(ref, root))
    return refs


def test_only_what_changed_is_read_again(project: Path, read: list[str]) -> None:
    age(project / "images")
    total = ingest.run(config(), Paths(project))["kept"]
    assert len(read) == total
    before = manifest(project)
    read.clear()
    assert ingest.run(config(), Paths(project))["reused"] == total
    assert read == []
    assert manifest(project).equals(before)
    changed, touched = (project / before["path"][i] for i in (3, 7))
    changed.write_bytes(encode("PNG", SMALL))
    os.utime(touched, ns=(1, 1))
    counts = ingest.run(config(), Paths(project))
    assert sorted(read) == [before["path"][3], before["path"][7]]
    assert counts["reused"] == total - 2
    assert manifest(project)["width"][3] == 60


def test_a_file_written_just_now_is_not_trusted_yet(project: Path, read: list[str]) -> None:
    age(project / "images")
    fresh = project / "images/temple/fresh.png"
    fresh.write_bytes(encode("PNG", SMALL))
    ingest.run(config(), Paths(project))
    read.clear()
    ingest.run(config(), Paths(project))
    assert read == ["images/temple/fresh.png"]


@pytest.mark.parametrize("damage", ["garbage", "columns", "empty"])
def test_a_damaged_cache_is_ignored(project: Path, read: list[str], damage: str) -> None:
    age(project / "images")
    total = ingest.run(config(), Paths(project))["kept"]
    cache = Paths(project).runs / "ingest-cache.parquet"
    before = manifest(project)
    if damage == "columns":
        pd.DataFrame({"path": ["x"]}).to_parquet(cache)
    else:
        cache.write_bytes(b"PAR1 nonsense" if damage == "garbage" else b"")
    read.clear()
    assert ingest.run(config(), Paths(project))["reused"] == 0
    assert len(read) == total
    assert manifest(project).equals(before)


def test_new_limits_apply_to_what_is_in_the_cache(project: Path) -> None:
    age(project / "images")
    (project / "images/temple/large.png").write_bytes(encode("PNG", SMALL.repeat(3, axis=0)))
    os.utime(project / "images/temple/large.png", ns=(1, 1))
    ingest.run(config(), Paths(project))
    counts = ingest.run(config(max_pixels=48 * 48), Paths(project))
    assert counts["by_reason"] == {"too-many-pixels": 1}
    with pytest.raises(HeadwaterError, match="hold no usable image"):
        ingest.run(config(min_side=200), Paths(project))


# ---- nothing to do -----------------------------------------------------------------------------


def test_without_any_image_the_reasons_are_said_and_the_old_manifest_stays(project: Path) -> None:
    ingest.run(config(), Paths(project))
    (project / "bare").mkdir()
    with pytest.raises(HeadwaterError, match="they are empty"):
        ingest.run(config("bare"), Paths(project))
    (project / "bare/a.txt").write_text("x")
    (project / "bare/b.png").write_text("")
    with pytest.raises(HeadwaterError, match=r"1 empty, 1 not-an-image.*Fix: add images"):
        ingest.run(config("bare"), Paths(project))
    with pytest.raises(HeadwaterError, match="source 'typo'"):
        ingest.run(config("images", "typo"), Paths(project))
    assert len(manifest(project)) > 0


def test_the_command_prints_what_became_of_the_files(project: Path) -> None:
    expected = plant_bad(project / "images/flower")
    done = headwater("ingest", "--json", cwd=project)
    counts = json.loads(done.stdout)
    assert counts["by_reason"] == expected
    assert "img/s" in done.stderr
    failed = headwater("ingest", "-s", "data.sources=[nowhere]", cwd=project, check=False)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1] == (
        "headwater: source 'nowhere': is not there. Fix: correct data.sources in params.yaml"
    )
