"""A walk through the Dagster UI with a real browser on a tiny project; it makes docs/ui/.

python tests/walk.py    (from the repository; about two minutes)
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from browser import CHROMIUM
from conftest import ROOT
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from s3server import free_ports

OUT = ROOT / "docs/ui"
PATIENCE = 180.0  # seconds for anything to happen
SIZE = {"width": 1400, "height": 900}
COLOURS = 128  # of pictures: pages have few, and a palette is a third of the bytes
PLACE = "pipelines.definitions"
SPINNER = ".bp5-spinner:visible, [class*=Spinner_spinner]:not([class*=Spinner_stopped]):visible"


# ---- Dagster and the browser -------------------------------------------------------------------


@contextlib.contextmanager
def site(root: Path) -> Iterator[str]:
    """What `make ui` serves of the project that ui_project.py makes in ``root``; its address."""
    port = free_ports(1)[0]
    env = os.environ | {"HEADWATER_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster_home")}
    env |= {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with root.with_suffix(".log").open("wb") as log:
        make = [sys.executable, str(ROOT / "tests/ui_project.py")]
        done = subprocess.run(make, env=env, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, root.with_suffix(".log").read_text()[-3000:]
        serve = [sys.executable, "-m", "dagster", "dev", "-p", str(port)]
        process = subprocess.Popen(
            serve, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until_served(f"http://127.0.0.1:{port}/server_info", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def until_served(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None
        assert time.monotonic() < end
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10):
            return
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Webserver, daemon, code server and runs: all are in the group that ``process`` leads."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def tab(base: str) -> Iterator[Page]:
    """An empty page of Debian's Chromium: Playwright's own would have to be downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(base_url=base, viewport=SIZE)
        page.set_default_timeout(PATIENCE * 1000)
        expect.set_options(timeout=PATIENCE * 1000)
        page.goto("/deployment")
        expect(page.get_by_text("Loaded", exact=True)).to_be_visible()
        page.evaluate("localStorage.setItem('dagster-nav-collapsed', 'true')")  # room for the rest
        yield page
        browser.close()


def picture(page: Page, file: Path) -> None:
    """Once nothing moves any more, as a small PNG."""
    expect(page.locator(SPINNER)).to_have_count(0)
    page.mouse.move(0, SIZE["height"] - 1)  # no tooltip
    before, now, end = b"", page.screenshot(), time.monotonic() + PATIENCE
    while before != now:
        assert time.monotonic() < end, f"{file.stem} moves and moves"
        page.wait_for_timeout(500)
        before, now = now, page.screenshot()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(now)).convert("RGB").quantize(COLOURS).save(file, optimize=True)


# ---- the walk ----------------------------------------------------------------------------------


def graph(page: Page, root: Path) -> None:
    """The assets of group ``data`` and their neighbours."""
    page.goto(f"/locations/__repository__@{PLACE}/asset-groups/data")
    expect(page.get_by_text("raw_images")).to_be_visible()


def plot(page: Page, root: Path) -> None:
    """Numbers of ``monitor`` by day."""
    page.goto("/assets/monitor")
    page.get_by_role("button", name="Plots").click()
    page.get_by_role("button", name="Events").click()
    expect(page.locator("canvas").first).to_be_visible()


def run(page: Page, root: Path) -> None:
    """The chain, started by hand after a limit was raised above what the data have."""
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("min_images: 40", "min_images: 400"))
    page.goto(f"/locations/{PLACE}/jobs/chain")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("button", name="Confirm").click()  # "collected" was never asked for
    expect(page.get_by_text("Launched run")).to_be_visible()
    page.goto("/runs")
    page.get_by_role("tab", name="Failed").click()  # a page that shows it running burns a core
    latest = page.locator("a[href^='/runs/']").first.get_attribute("href")
    page.goto(f"{latest}?logs=Dependencies")  # what the failure kept from running
    expect(page.get_by_text("Dependencies for step report were not executed")).to_be_visible()


def check(page: Page, root: Path) -> None:
    """What failed, and by how much."""
    page.goto("/assets/validate?view=checks")
    expect(page.get_by_text("at least 400 images (found 104)")).to_be_visible()


STEPS = (graph, plot, run, check)


def walk(out: Path) -> dict[str, str]:
    """The text of each page by the name of its picture in ``out``."""
    found = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name) / "project"
        with site(root) as base, tab(base) as page:
            for step in STEPS:
                step(page, root)
                picture(page, out / f"{step.__name__}.png")
                found[step.__name__] = page.inner_text("body")
    return found


if __name__ == "__main__":
    walk(OUT)
