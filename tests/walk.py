"""A walk through the Dagster UI with a real browser, on a tiny project; docs/ui/ is made by it.

python tests/walk.py    (from the repository; about five minutes)

The products are made by the stages, then `make ui` (dagster dev) is started on them: a run of the
job `chain`, which finds all of it fresh, and one of `validate` with limits that the data violate.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT, TINY, photo_tiles
from devtools import Page, page
from PIL import Image
from s3server import free_ports

from pipelines import up

OUT = ROOT / "docs/ui"
PLACE = {"repositoryLocationName": "pipelines.definitions", "repositoryName": "__repository__"}
LAUNCH = """mutation ($p: ExecutionParams!) { launchRun(executionParams: $p) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
STATUS = """query ($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"""
CHAIN = ("ingest", "validate", "seed_embed", "curate", "shard", "pretrain")


@dataclass(frozen=True)
class Seen:
    """What the walk found on the pages."""

    graph: str
    run: str
    check: str
    plot: tuple[int, int]  # pixels of the picture within the page
    files: tuple[Path, ...]


# ---- the project -------------------------------------------------------------------------------


def build(root: Path, stages: tuple[str, ...]) -> None:
    """A project under git and DVC whose first ``stages`` have run."""
    for i, (name, tile) in enumerate(photo_tiles()[::2]):
        path = root / "data/raw" / name / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    (root / "data/collected").mkdir()
    (root / "data/collected/.gitkeep").touch()
    text = TINY.replace("[images]", "[data/raw, data/collected]")
    (root / "params.yaml").write_text(text + "seed_encoder: {}\nsynthesise: {}\n")
    files = ("dvc.yaml", ".dvcignore", "data/.gitignore", ".dvc/config", ".dvc/.gitignore")
    for name in (*files, "data/corrections.csv", "data/forgotten.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    from ssl_core.config import Paths, load

    with contextlib.chdir(root):
        cfg, paths = load(), Paths()
        for name in stages:
            importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)
        from dvc.repo import Repo

        with Repo() as repo:
            for name in stages:
                repo.commit(name, force=True)


@contextlib.contextmanager
def dagster(root: Path, port: int) -> Iterator[None]:
    """As `make ui` starts it."""
    home = root / ".dagster_home"
    env = os.environ | {"HEADWATER_ROOT": str(root), "DAGSTER_HOME": str(home)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    subprocess.run([sys.executable, "-m", "pipelines.home"], env=env, cwd=ROOT, check=True)
    command = [sys.executable, "-m", "dagster", "dev", "-p", str(port)]
    with (root / "dagster.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: loaded(process, root / "dagster.log"))
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def loaded(process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        (entry,) = up.ask(up.PLACES)["workspaceOrError"]["locationEntries"]
    except (OSError, ValueError):
        return False
    return (entry["locationOrLoadError"] or {}).get("__typename") == "RepositoryLocation"


def until(true: Any, seconds: float = 300.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return found


def launch(assets: tuple[str, ...]) -> str:
    """A run of part of the job ``chain``, in one process; its id."""
    picked = [{"path": [name]} for name in assets]
    params = {
        "selector": {**PLACE, "jobName": "chain", "assetSelection": picked},
        "runConfigData": {"execution": {"config": {"in_process": {}}}},
    }
    return str(up.ask(LAUNCH, 60, {"p": params})["launchRun"]["run"]["runId"])


def finished(run: str) -> str:
    """Its status once it is over."""

    def status() -> str:
        found = up.ask(STATUS, 60, {"r": run})["runOrError"]["status"]
        return str(found) if found in ("SUCCESS", "FAILURE", "CANCELED") else ""

    return str(until(status))


# ---- the walk ----------------------------------------------------------------------------------


def walk(root: Path, out: Path, stages: tuple[str, ...]) -> Seen:
    """Graph, run, failed check, plot; a picture of each in ``out``."""
    assert finished(launch(stages)) == "SUCCESS"
    with page(root) as tab:
        graph = look_at_graph(tab, out / "graph.png")
        size = look_at_plot(tab, out / "plot.png")
        text = (root / "params.yaml").read_text()
        (root / "params.yaml").write_text(text.replace("min_images: 40", "min_images: 4000"))
        run = look_at_run(tab, out / "run.png")
        check = look_at_check(tab, out / "check.png")
    files = tuple(out / f"{name}.png" for name in ("graph", "run", "check", "plot"))
    return Seen(graph, run, check, size, files)


def look_at_graph(tab: Page, file: Path) -> str:
    tab.go(f"{up.url()}/asset-groups")
    tab.see("ingest", "validate", "pretrain", "monitor")
    time.sleep(3)  # it moves into place
    tab.picture(file)
    return tab.text()


def look_at_plot(tab: Page, file: Path) -> tuple[int, int]:
    """The curves in the metadata of ``pretrain``."""
    tab.go(f"{up.url()}/assets/pretrain?view=overview")
    tab.see("curves")
    tab.click("[Show Markdown]")
    size = tab.wait("""(() => {
      const i = [...document.images].find(i => i.src.startsWith('data:image/png'));
      return i && i.complete && i.naturalWidth ? [i.naturalWidth, i.naturalHeight] : null;
    })()""")
    time.sleep(1)
    tab.picture(file)
    return int(size[0]), int(size[1])


def look_at_run(tab: Page, file: Path) -> str:
    """Press "Materialize" on the page of ``validate``, whose limits now fail; go to its run."""
    before = ids()
    tab.go(f"{up.url()}/assets/validate")
    tab.see("validate")
    tab.click("Materialize")
    run = until(lambda: [r for r in ids() if r not in before])[0]
    assert finished(run) == "FAILURE"
    tab.go(f"{up.url()}/runs/{run}")
    tab.see("Failure", "validate")
    time.sleep(3)
    tab.picture(file)
    return tab.text()


def ids() -> list[str]:
    found = up.ask("{ runsOrError { ... on Runs { results { runId } } } }", 60)
    return [r["runId"] for r in found["runsOrError"]["results"]]


def look_at_check(tab: Page, file: Path) -> str:
    tab.go(f"{up.url()}/assets/validate?view=checks")
    tab.see("data_is_valid")
    tab.click("data_is_valid")
    tab.see("Failed")
    time.sleep(2)
    tab.picture(file)
    return tab.text()


@contextlib.contextmanager
def site(stages: tuple[str, ...] = CHAIN) -> Iterator[Path]:
    """The project, and the UI at ``up.url()``."""
    port = free_ports(1)[0]
    before = os.environ.get("HEADWATER_PORT")
    os.environ["HEADWATER_PORT"] = str(port)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            root = Path(name) / "project"
            build(root, stages)
            with dagster(root, port):
                yield root
    finally:
        os.environ.pop("HEADWATER_PORT")
        if before is not None:
            os.environ["HEADWATER_PORT"] = before


if __name__ == "__main__":
    from ssl_core.__main__ import CHAIN as WHOLE

    with site(tuple(WHOLE)) as place:
        print(walk(place, OUT, tuple(WHOLE)).files)
