"""An image that is forgotten goes, does not come back, and everything else keeps its bytes."""

# ruff: noqa: F811 (fixtures by name)
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import headwater
from test_ingest import age
from typer.testing import CliRunner
from whole_project import ask, made, place  # noqa: F401 (fixtures)

from ssl_core import forgotten, registry, shards, store
from ssl_core.__main__ import app
from ssl_core.artifacts import LINEAGE, read_json, read_lines, sha256_file
from ssl_core.commands import _purge, forget
from ssl_core.config import Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.stages import ingest

KILL = """
import os
from ssl_core.commands import _purge
real = _purge.shards.without
def cut(*words):
    real(*words)
    os._exit(9)
_purge.shards.without = cut
from ssl_core.__main__ import main
main()
"""


def kept(split: str = "train") -> dict:
    """One image that went into the shards."""
    frame = pd.read_parquet(Paths().curated / "curated.parquet")
    rows = frame[frame["keep"] & (frame["split"] == split) & (frame["dup_group"] < 0)]
    return rows.sort_values("sha256").iloc[len(rows) // 2].to_dict()


def files(top: Path) -> dict[str, str]:
    """Contents of all files but logs with a time in them."""
    found = (f for f in top.rglob("*") if f.is_file() and f.name not in ("forget.lock",))
    skip = ("forgotten.csv", "forgotten.jsonl")
    return {f.relative_to(top).as_posix(): sha256_file(f) for f in found if f.name not in skip}


def holding(sha: str) -> list[str]:
    """Tables that still name the image."""
    found = []
    for file in sorted(Path("data/products").rglob("*.parquet")):
        frame = pd.read_parquet(file)
        if any(sha in set(frame[c]) for c in ("sha256", "key") if c in frame):
            found.append(file.relative_to("data/products").as_posix())
    return found


def test_only_the_shard_that_holds_it_is_written_again(place: Path) -> None:
    row, paths = kept(), Paths()
    index = pd.read_parquet(paths.shards / "index.parquet").set_index("key")
    shard = index.loc[row["sha256"], "shard"]
    before = {p.name: sha256_file(p) for p in paths.shards.glob("*.tar")}
    assert len(before) > 2
    found = ask("forget", row["path"], "--reason", "request 7")
    assert found["shards"] == [shard]
    after = {p.name: sha256_file(p) for p in paths.shards.glob("*.tar")}
    assert {n for n in before if before[n] != after[n]} == {shard}
    assert store.verify(paths.shards) == len(before)
    again = pd.read_parquet(paths.shards / "index.parquet")
    assert set(index.index) - set(again["key"]) == {row["sha256"]}
    for r in again.itertuples():  # every offset still leads to the image that it led to
        data = (paths.shards / r.shard).read_bytes()[r.offset :][: r.size]
        old = index.loc[r.key]
        assert (len(data), r.label, r.group) == (old["size"], old["label"], old["group"])
        assert data.startswith((b"\x89PNG", b"\xff\xd8"))
    assert holding(row["sha256"]) == ["pretrain/seen.parquet"]  # only what an encoder saw
    assert Path(row["path"]).exists()  # the user's own
    assert any(row["path"] in text and "yours" in text for text in found["left"])


def test_products_stay_linked_and_training_is_stale(place: Path) -> None:
    row, paths = kept(), Paths()
    ask("forget", row["sha256"])
    states = {s["stage"]: s["state"] for s in ask("status")["stages"]}
    assert [k for k, v in states.items() if v == "fresh"] == list(states)[:5]
    features = np.load(paths.seed_embeddings / "embeddings.npy")
    assert len(features) == len(pd.read_parquet(paths.manifest / "manifest.parquet"))
    for name in ("manifest", "curated", "shards", "embeddings"):
        record = read_json(paths.products / name / LINEAGE)
        assert record["forgotten"]["images"] == 1
        for file, digest in record["outputs"].items():
            assert sha256_file(paths.products / name / file) == digest
    embedded = pd.read_parquet(paths.embeddings / "index.parquet")
    assert len(np.load(paths.embeddings / "features.npy")) == len(embedded)


def test_the_next_ingest_makes_the_same_manifest(place: Path) -> None:
    row, paths = kept(), Paths()
    ask("forget", row["sha256"])
    tables = ("manifest.parquet", "rejects.parquet")
    first = {n: (paths.manifest / n).read_bytes() for n in tables}
    shutil.copy(row["path"], "images/flower/renamed.png")
    counts = ingest.run(load(), paths)
    assert counts["by_reason"]["forgotten"] == 2  # under its old name and its new one
    assert row["sha256"] not in set(pd.read_parquet(paths.manifest / tables[0])["sha256"])
    Path("images/flower/renamed.png").unlink()
    ingest.run(load(), paths)
    assert {n: (paths.manifest / n).read_bytes() for n in tables} == first


def test_an_encoder_that_never_saw_it_stays_fresh(place: Path) -> None:
    row = kept("test")
    found = ask("forget", row["path"])
    assert found["models"] == []
    states = {s["stage"]: s["state"] for s in ask("status")["stages"]}
    assert states["pretrain"] == states["embed"] == "fresh"
    assert states["evaluate"] == "stale"  # its figures counted the image
    ask("forget", kept("train")["path"])
    ask("forget", kept("test")["path"])  # does not hide that the encoder saw the second
    states = {s["stage"]: s["state"] for s in ask("status")["stages"]}
    assert states["pretrain"] == "stale"


def test_checkpoints_that_saw_it_are_named(place: Path) -> None:
    row, paths = kept(), Paths()
    work = paths.runs / "pretrain/0123456789ab"
    work.mkdir(parents=True)
    pd.DataFrame({"sha256": [row["sha256"]], "group": ["g"]}).to_parquet(work / "seen.parquet")
    found = ask("forget", row["path"])
    states = {m["model"]: m["state"] for m in found["models"]}
    champion = registry.champion(paths.registry)
    assert states == {
        champion: "champion",
        "data/products/pretrain": "latest encoder",
        "runs/pretrain/0123456789ab": "training",
    }
    assert all(m["advice"] for m in found["models"])
    again = ask("trace", row["sha256"])
    assert again["verdict"].startswith("forgotten")
    assert {m["model"] for m in again["models"]} == set(states)
    log = read_lines(paths.requests)
    assert [e["event"] for e in log] == ["request", "done"]
    assert set(log[1]["models"]) == set(states)
    text = paths.requests.read_text() + paths.forgotten.read_text()
    assert row["path"] not in text
    assert Path(row["path"]).stem not in text


def test_collected_bytes_go_with_their_line(place: Path) -> None:
    row, folder = kept(), Path("data/collected/late")
    folder.mkdir(parents=True)
    shutil.copy(row["path"], folder / "a.png")
    other = kept("test")["path"]
    shutil.copy(other, folder / "b.png")
    (folder / "metadata.csv").write_text("path,label\na.png,x\nb.png,y\n")
    ask("forget", row["sha256"][:12])
    assert [p.name for p in sorted(folder.iterdir())] == ["b.png", "metadata.csv"]
    assert (folder / "metadata.csv").read_text() == "path,label\nb.png,y\n"


def test_caches_and_pages_lose_it(place: Path) -> None:
    row, paths = kept(), Paths()
    age(place / "images")
    ingest.run(load(), paths)
    cached = paths.runs / "ingest-cache.parquet"
    assert row["sha256"] in set(pd.read_parquet(cached)["sha256"])
    paths.reports.mkdir(exist_ok=True)
    (paths.reports / "report.html").write_text("<img>")
    ask("forget", row["path"])
    assert row["sha256"] not in set(pd.read_parquet(cached)["sha256"])
    assert not list(paths.runs.glob("seed-features-*"))
    assert not list(paths.reports.glob("*.html"))


def test_dry_run_changes_nothing(place: Path) -> None:
    row, before = kept(), files(place)
    found = ask("forget", row["path"], "--dry-run")
    assert found["removed"]
    assert files(place) == before
    assert not Paths().requests.exists()
    assert CliRunner().invoke(app, ["forget", row["path"], "--dry-run"]).stdout.startswith("Would")


def test_wherever_it_is_interrupted_the_same_call_finishes_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh(name: str) -> Path:
        shutil.copytree(made, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    whole = fresh("whole")
    sha, real = kept()["sha256"], _purge.steps
    count = len(forget.forget(Paths(), sha)["removed"])
    assert count > 6
    assert len(forget.forget(Paths(), sha)["removed"]) == 1  # only the linking is looked at again
    for stop in range(count):
        root = fresh(f"stop-{stop}")

        def die() -> None:
            raise KeyboardInterrupt

        def cut(*words: object, n: int = stop) -> list[_purge.Step]:
            return [*real(*words)[:n], _purge.Step("killed", die)]

        with monkeypatch.context() as patch:
            patch.setattr(_purge, "steps", cut)
            with pytest.raises(KeyboardInterrupt):
                forget.forget(Paths(), sha)
        forget.forget(Paths(), sha)
        assert files(root) == files(whole), stop


def test_killed_while_a_shard_is_written_the_old_ones_stand(place: Path) -> None:
    row, before = kept(), files(Paths().shards)
    words = [sys.executable, "-c", KILL, "forget", row["sha256"]]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 9
    assert files(Paths().shards) == before
    assert forgotten.read(Paths().forgotten) == {row["sha256"]}  # the wish outlives the crash
    headwater("forget", row["sha256"], cwd=place)
    assert holding(row["sha256"]) == ["pretrain/seen.parquet"]
    assert store.verify(Paths().shards)


def test_shards_in_s3_come_to_lie_at_a_new_address(place: Path, s3_lake: object) -> None:
    from ssl_core import upload

    paths, row = Paths(), kept()
    shutil.copytree(paths.shards, place / "local")
    url = upload.move(paths.shards, "s3://lake/shards")
    assert shards.without(place / "local", made_folder(place / "expected"), {row["sha256"]})
    found = ask("forget", row["path"])
    new = read_json(paths.shards / store.PLACE)["url"]
    assert new != url
    assert any(text.startswith(url) for text in found["left"])
    assert store.at(paths.shards).about == read_json(place / "expected/index.json")
    assert store.verify(paths.shards)


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_shard_that_held_nothing_else_is_gone(tmp_path: Path) -> None:
    from planted_shards import samples

    some = [s for s in samples() if s.split == "train"][:4]
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    shards.write(tmp_path / "from", some, 1, 50)  # one sample each
    hit = shards.without(tmp_path / "from", tmp_path / "to", {some[1].key})
    assert hit == ["train-000001.tar"]
    names = [f"train-{i:06d}.tar" for i in (0, 2, 3)]
    assert sorted(p.name for p in (tmp_path / "to").glob("*.tar")) == names
    assert store.verify(tmp_path / "to") == 3


def test_what_cannot_be_forgotten_says_why(place: Path) -> None:
    refuse("images/temple/gone.png")
    with pytest.raises(HeadwaterError, match="rejected before its content was known"):
        forget.which(Paths(), "images/temple/gone.png")
    with pytest.raises(HeadwaterError, match="fits no image"):
        ask("forget", "fedcba987654")
    unknown = "ab" * 32  # may be forgotten before it comes
    assert ask("forget", unknown)["removed"] == ["lineages linked again"]
    Paths().forgotten.write_text("sha256,requested_at,reason\nabc,,\n")
    with pytest.raises(HeadwaterError, match=r"forgotten.csv, line 2: holds no sha256"):
        ingest.run(load(), Paths())


def refuse(ref: str) -> None:
    """A line in the rejects whose file is gone."""
    file = Paths().manifest / "rejects.parquet"
    frame = pd.read_parquet(file)
    row = {"path": ref, "reason": "truncated", "detail": ""}
    pd.concat([frame, pd.DataFrame([row])]).to_parquet(file)


def test_a_product_left_aside_by_a_crash_is_put_back_first(place: Path) -> None:
    paths = Paths()
    paths.embeddings.rename(paths.products / ".embeddings.ab12cd34.old")
    with pytest.raises(HeadwaterError, match="under another name"):
        ask("forget", kept()["sha256"])
