"""From a folder of pictures to a report: what `init` finds, chooses and writes; then `run`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, headwater, photo_tiles
from PIL import Image
from typer.testing import CliRunner

from ssl_core import config
from ssl_core.__main__ import CHAIN, app
from ssl_core.artifacts import read_json
from ssl_core.commands import _look, _scaffold
from ssl_core.errors import HeadwaterError


def pictures(folder: Path, count: int = 104, side: int = 48) -> Path:
    """Real photographs, cut up and sorted by class."""
    tiles = photo_tiles()
    for i, (name, tile) in enumerate(tiles[:: max(1, len(tiles) // count)][:count]):
        path = folder / name / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).resize((side, side)).save(path)
    return folder


def init(*args: str) -> dict[str, Any]:
    """`headwater init --json` in this process."""
    done = CliRunner().invoke(app, ["init", *args, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cwd in which no tool for versions is called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_scaffold, "versioned", lambda project: [])
    return tmp_path


def test_from_pictures_to_the_report_in_two_commands(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "pictures/flower/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0cut")
    told = headwater("init", "pictures", "--minutes", "0.05", cwd=tmp_path)
    assert "2 classes on 105 files" in told.stdout
    assert "1 truncated (e.g. pictures/flower/broken.jpg)" in told.stdout
    assert told.stdout.strip().endswith("Next  headwater run")
    assert (tmp_path / ".git").is_dir()
    assert (tmp_path / ".dvc").is_dir()
    # The password of `make up` lies there.
    assert "/.service/" in (tmp_path / ".gitignore").read_text().splitlines()
    done = headwater("run", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert list(found["ran"]) == list(CHAIN)
    assert found["report"] == "reports/report.html"
    page = (tmp_path / found["report"]).read_text()
    assert "names" in page
    assert "truncated" in page  # the broken file is listed with its reason
    assert (tmp_path / "dvc.lock").exists()
    told = headwater("status", "--json", cwd=tmp_path)
    assert {s["state"] for s in json.loads(told.stdout)["stages"]} == {"fresh"}
    again = json.loads(headwater("run", "--json", cwd=tmp_path).stdout)
    assert (again["ran"], again["fresh"]) == ({}, list(CHAIN))


OWN = ["data/collected", "data/corrections.csv", "data/forgotten.csv"]  # beside the source


def test_the_graph_is_the_repository_s_but_for_the_source() -> None:
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    made = _scaffold.graph("pictures")
    assert made["stages"].pop("ingest")["deps"] == ["pictures", *OWN]
    del own["stages"]["ingest"]
    assert made == own


@pytest.mark.parametrize(
    ("source", "deps", "always"),
    [
        ("s3://bucket/prefix", OWN, True),
        ("table.csv", ["table.csv", *OWN], True),
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", *OWN], None),
    ],
)
def test_what_dvc_cannot_watch_is_looked_at_every_time(
    source: str, deps: list[str], always: bool | None
) -> None:
    ingest = _scaffold.graph(source)["stages"]["ingest"]
    assert (ingest["deps"], ingest.get("always_changed")) == (deps, always)


@pytest.mark.parametrize(("side", "image", "crop"), [(20, 32, 32), (50, 48, 32), (400, 64, 32)])
def test_sizes_follow_the_pictures(bare: Path, side: int, image: int, crop: int) -> None:
    pictures(bare / "in", side=side)
    tree = init("in")["params"]
    assert tree["shard"] == {"max_side": image}
    assert (tree["pretrain"]["image_size"], tree["pretrain"]["crop_size"]) == (image, crop)


def test_params_are_valid_and_hold_every_section_of_the_graph(bare: Path) -> None:
    pictures(bare / "in")
    init("in")
    cfg = config.load()
    assert cfg.data.sources == ("in", "data/collected")
    assert cfg.validate_.min_images <= 104
    graph = yaml.safe_load(Path("dvc.yaml").read_text())
    wanted = {p for stage in graph["stages"].values() for p in stage["params"]}
    assert wanted <= set(yaml.safe_load(Path("params.yaml").read_text()))


def test_pictures_elsewhere_are_named_by_their_whole_path(bare: Path) -> None:
    source = pictures(bare / "elsewhere/in")
    found = init(str(source), "--into", "project")
    assert found["params"]["data"]["sources"][0] == source.resolve().as_posix()
    assert found["next"] == "cd project && headwater run"
    assert Path("project/data/collected/.gitkeep").exists()


def test_without_labels_the_limits_let_the_chain_pass(bare: Path) -> None:
    for i, (_, tile) in enumerate(photo_tiles()[:40]):
        Path("in").mkdir(exist_ok=True)
        Image.fromarray(tile).save(f"in/{i}.png")
    found = init("in")
    assert found["found"]["classes"] == 0
    assert found["params"]["validate"]["min_classes"] == 0
    assert found["params"]["pretrain"]["method"] not in ("supcon", "supervised")


def test_labels_of_a_table_and_channels_of_arrays(bare: Path) -> None:
    rng = np.random.default_rng(0)
    Path("in").mkdir()
    rows = ["path,label"]
    for i in range(40):
        np.save(f"in/{i}.npy", rng.integers(0, 255, (24, 24, 5), dtype=np.uint8))
        rows.append(f"{i}.npy,{'ab'[i % 2]}")
    Path("in/metadata.csv").write_text("\n".join(rows))
    found = init("in")
    assert found["found"]["classes"] == 2
    assert found["params"]["data"]["channels"] == 5
    assert found["params"]["pretrain"]["backbone_args"]["in_chans"] == 5
    assert found["found"]["formats"] == {"NPY": 40}


def test_a_large_folder_is_sampled_and_still_counted(bare: Path) -> None:
    pictures(bare / "in", 90)
    found = _look.look("in", bare, most=20)
    assert sum(found.formats.values()) == 20
    assert found.listed == found.images == 90


@pytest.mark.parametrize(
    ("make", "source", "words"),
    [
        (lambda: None, "nowhere", "is not there"),
        (lambda: Path("in").mkdir(), "in", "holds no file"),
        (lambda: Path("a.txt").write_text("x"), ".", "holds the project itself"),
    ],
)
def test_what_cannot_be_a_source(bare: Path, make: Any, source: str, words: str) -> None:
    make()
    with pytest.raises(HeadwaterError, match=words):
        init(source)
    assert not Path("params.yaml").exists()


def test_text_files_are_no_pictures(bare: Path) -> None:
    Path("in").mkdir()
    Path("in/a.txt").write_text("x")
    with pytest.raises(HeadwaterError, match=r"holds no usable image .*not-an-image"):
        init("in")


def test_a_project_is_never_overwritten(bare: Path) -> None:
    pictures(bare / "in", 40)
    Path("params.yaml").write_text("seed: 3\n")
    with pytest.raises(HeadwaterError, match="is there already"):
        init("in")
    assert Path("params.yaml").read_text() == "seed: 3\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_folder_of_a_repository_stays_in_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    inside = tmp_path / "part"
    inside.mkdir()
    assert _scaffold.versioned(inside) == ["dvc init"]
    assert not (inside / ".git").exists()
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    words = [sys.executable, "-m", "dvc", "root"]
    done = subprocess.run(words, cwd=inside, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "."


def test_a_failed_gate_stops_the_run_with_its_reason(project: Path) -> None:
    text = (project / "params.yaml").read_text().replace("min_images: 40", "min_images: 4000")
    (project / "params.yaml").write_text(text)
    done = headwater("run", cwd=project, check=False)
    assert done.returncode == 1
    assert "headwater: at least 4000 images: failed" in done.stderr
    assert read_json(project / "data/products/validation/report.json")["success"] is False
    assert not (project / "data/products/shards").exists()
    assert "at least 4000 images" in (project / "reports/report.html").read_text()
    told = json.loads(headwater("status", "--json", cwd=project).stdout)
    assert told["next"].startswith("mend the data")
