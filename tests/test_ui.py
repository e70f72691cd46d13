"""The Dagster UI in a real browser: graph, plot, failed run and failed check of a tiny project."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import needs_browser
from conftest import ROOT
from PIL import Image
from walk import OUT, SIZE, STEPS, walk

MOST = 200_000  # bytes of a picture in docs/
NAMES = [step.__name__ for step in STEPS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, str]:
    return walk(folder)


@needs_browser
def test_the_graph_leads_from_raw_images_to_shards_and_on(seen: dict[str, str]) -> None:
    shown = set(seen["graph"].split())
    assert shown >= {"raw_images", "collected", "ingest", "validate", "seed_embed", "curate"}
    assert shown >= {"shard", "pretrain", "embed", "evaluate", "promote"}


@needs_browser
def test_numbers_of_the_days_are_plotted(seen: dict[str, str]) -> None:
    assert {"evidence", "p/mmd", "statistic/mmd"} <= set(seen["plot"].split())


@needs_browser
def test_a_failed_check_stops_what_follows(seen: dict[str, str]) -> None:
    assert "Errored (1)" in seen["run"]
    assert "Succeeded (1)" in seen["run"]
    assert "Not executed (8)" in seen["run"]


@needs_browser
def test_the_check_says_which_limit_and_what_was_found(seen: dict[str, str]) -> None:
    assert "blocking" in seen["check"]
    assert "at least 400 images (found 104)" in seen["check"]


@needs_browser
def test_pages_were_photographed_whole(seen: dict[str, str], folder: Path) -> None:
    assert list(seen) == NAMES
    for name in NAMES:
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == (SIZE["width"], SIZE["height"])
            assert len(image.getcolors()) > 50, name  # no blank page


def test_the_guide_shows_all_pictures_and_none_is_large() -> None:
    text = (ROOT / "docs/guides/ui.md").read_text()
    assert sorted(p.stem for p in OUT.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert f"(../ui/{name}.png)" in text
        assert (OUT / f"{name}.png").stat().st_size < MOST
