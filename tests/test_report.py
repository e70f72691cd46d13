"""The page opens in a real browser, offline, without an error, and shows what there is."""

from __future__ import annotations

import importlib
from pathlib import Path

from browser import browse, needs_browser

from ssl_core.__main__ import CHAIN
from ssl_core.config import Paths, load
from ssl_core.stages import report


def test_page_says_what_is_missing(project: Path) -> None:
    found = report.run(load(), Paths())
    page = Path("reports/report.html").read_text()
    assert "run `headwater ingest` first" in page
    assert {"rejects", "training", "evaluation", "promotion"} <= set(found["empty_sections"])


@needs_browser
def test_whole_page_in_a_browser(project: Path) -> None:
    (project / "images/temple/broken.png").write_bytes(b"")
    cfg, paths = load(), Paths()
    for name in CHAIN:
        importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)
    found = report.run(cfg, paths)
    assert set(found["empty_sections"]) == {"deployment"}
    page = project / "reports/report.html"
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    done = browse(page, project, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr  # no script error, no refused resource
    assert '<button id="theme" type="button">' in done.stdout  # the page's own script unhid it
    shown = ("Refused files", "Nearest neighbours", "Patch features", "linear probe", "Lineage")
    for words in shown:
        assert words in done.stdout
    browse(page, project, f"--screenshot={project / 'page.png'}")
    assert (project / "page.png").stat().st_size > 50_000
