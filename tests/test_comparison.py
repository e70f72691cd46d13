"""Encoders beside each other: names, the cache, masks, and the page in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy
from browser import browse, needs_browser
from PIL import Image

from ssl_core import embed, registry
from ssl_core.analyse._subject import Masks
from ssl_core.artifacts import read_json, sha256_file
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.progress import Reporter
from ssl_core.report import comparison
from ssl_core.stages import _subjects, analyse, promote

SOURCES = {"a": toy.CLASSES[:3], "b": toy.CLASSES[:3]}


def config(**changes: object) -> Config:
    section = toy.CFG.analyse.model_copy(update={"analyses": ("attention",), **changes})
    return toy.CFG.model_copy(update={"analyse": section})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    made = Paths(tmp_path_factory.mktemp("project"))
    toy.build(made, SOURCES, seed=1)
    return made


def test_results_hold_every_encoder_and_measure(paths: Paths) -> None:
    found = analyse.run(config(), paths)
    table = pd.read_parquet(paths.analysis / "results.parquet")
    assert found["encoders"] == ["pretrained", "random"]
    assert set(table["encoder"]) == {"pretrained", "random"}
    assert {*toy.CFG.evaluate.measures, "attention"} <= set(table["measure"])
    own = pd.read_parquet(paths.evaluation / "results.parquet")
    key = ["measure", "metric", "slice"]
    both = own[own["encoder"] == "pretrained"].merge(
        table[table["encoder"] == "pretrained"], on=key, suffixes=("", "_again")
    )
    assert len(both) == (own["encoder"] == "pretrained").sum()
    np.testing.assert_allclose(both["value"], both["value_again"])  # stage evaluate says the same


def test_nothing_is_computed_twice(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    analyse.run(config(), paths)
    before = sha256_file(paths.analysis / "results.parquet")

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    for name in ("_measure", "_analyse"):
        monkeypatch.setattr(analyse, name, never)
    monkeypatch.setattr(embed, "compute", never)
    analyse.run(config(), paths)
    assert sha256_file(paths.analysis / "results.parquet") == before
    with pytest.raises(AssertionError, match="computed again"):
        analyse.run(config(images=17), paths)  # another setting is another finding


def test_names_of_encoders(paths: Paths) -> None:
    model = str(promote.run(toy.CFG, paths)["candidate"])
    with Reporter("test") as report:
        ours, key = _subjects.subject("pretrained", toy.CFG, paths, report)
        served, same = _subjects.subject(model, toy.CFG, paths, report)
        folder, again = _subjects.subject("data/products/pretrain", toy.CFG, paths, report)
        seed, other = _subjects.subject("seed", toy.CFG, paths, report)
    assert key == same == again != other
    for one in (served, folder):
        np.testing.assert_array_equal(one.rows.features, ours.rows.features)
    np.testing.assert_allclose(
        ours.rows.features, embed.load(paths.embeddings, None).features, rtol=1e-5, atol=1e-6
    )
    assert seed.rows.features.shape == (len(ours.rows), 1280)
    assert registry.champion(paths.registry) == model
    with pytest.raises(HeadwaterError, match="'nobody': is no encoder"):
        _subjects.named("nobody", toy.CFG, paths)


def test_masks_mirror_the_images_and_bad_ones_are_named(tmp_path: Path) -> None:
    paths, cfg = Paths(tmp_path), Config()
    paths.manifest.mkdir(parents=True)
    names = ["raw/a/x.jpg", "raw/a/y.png", "/outside.png", "../up.png"]
    frame = pd.DataFrame({"path": names, "sha256": ["k0", "k1", "k2", "k3"]})
    frame.to_parquet(paths.manifest / "manifest.parquet")
    folder = tmp_path / cfg.analyse.masks / "raw/a"
    folder.mkdir(parents=True)
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(folder / "x.png")
    (folder.parent.parent.parent / "up.png").write_bytes(b"")
    found = _subjects.masks(cfg, paths, np.array(["k1", "k0", "k2", "k3", "k9"]))
    assert found is not None
    assert found.rows().tolist() == [1]
    np.testing.assert_array_equal(found.take(np.array([1]), 4)[0], np.eye(4))
    Image.new("RGB", (4, 4)).save(folder / "x.png")
    with pytest.raises(HeadwaterError, match=r"x\.png: is no mask \(mode RGB\)"):
        found.take(np.array([1]), 4)
    assert _subjects.masks(Config(), Paths(tmp_path / "other"), np.array(["k0"])) is None


def test_heat_map_shades_each_line_and_leaves_gaps() -> None:
    rows = [("a", 1.0), ("b", 3.0), ("c", 2.0)]
    table = pd.DataFrame(
        [
            {"encoder": e, "measure": "m", "metric": "x", "slice": "all", "value": v}
            | {"low": np.nan, "high": np.nan}
            for e, v in rows
        ]
    )
    [line] = comparison.heat(table, ["a", "b", "c", "nobody"])
    assert [c["shade"] for c in line["cells"]] == [0, 45, 22, 0]
    assert np.isnan(line["cells"][3]["value"])


def test_likeness_is_symmetric_and_one_to_itself() -> None:
    found = comparison.Likeness({("a", "b"): 0.3}, {})
    table = dict(found.table(["a", "b", "c"]))
    assert table["a"][:2] == [1.0, 0.3]
    assert table["b"][:2] == [0.3, 1.0]
    assert np.isnan(table["c"][0])
    assert table["c"][2] == 1.0


@needs_browser
def test_page_draws_its_map_without_network(paths: Paths, tmp_path: Path) -> None:
    analyse.run(config(), paths)
    page = paths.analysis / "index.html"
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    done = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    for words in ("Nearest neighbours", "balanced accuracy", 'id="canvas"', "Mistakes", "Likeness"):
        assert words in done.stdout
    drawn = browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" not in drawn.stderr
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels[np.ptp(pixels.astype(int), axis=1) > 90], axis=0)) > 20  # points
    assert read_json(paths.analysis / "missing.json") == {}


def test_masks_need_no_manifest_when_there_are_none() -> None:
    assert Masks((None, None)).rows().tolist() == []
