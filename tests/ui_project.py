"""A tiny project with a past that Dagster knows: a chain that ran and eight days of deployment.

HEADWATER_ROOT=... DAGSTER_HOME=... python tests/ui_project.py

A process of its own: ``assets`` read HEADWATER_ROOT once. What ran is real; only that all of it ran in
one process is not what Dagster does.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from pathlib import Path
from typing import Any

import dagster as dg
from conftest import fill_tracked, photo_tiles
from PIL import Image, ImageOps

from assets._dvc import ROOT, with_repo
from pipelines import home, jobs
from ssl_core import registry
from ssl_core.__main__ import CHAIN
from ssl_core.config import Paths, load
from ssl_core.stages import _entry

DAYS = tuple(f"2025-01-0{i}" for i in range(1, 9))
STRANGE = 3  # of the last days, whose images are negatives


def stages() -> None:
    """Each product, told to DVC."""
    cfg, paths = load(), Paths(ROOT)
    for name in CHAIN:
        importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)
    with_repo(lambda repo: [repo.commit(name, force=True) for name in CHAIN])
    if registry.champion(paths.registry) is None:  # so few steps need not beat random init
        model = _entry.enter(cfg, paths, {"candidate": 0.5, "n": 10}, "for the walk")
        registry.promote(paths.registry, model, {"reason": "for the walk"})


def incoming() -> None:
    """Twenty tiles a day that the chain has not seen."""
    tiles = photo_tiles()[1::2]
    for i, day in enumerate(DAYS):
        folder = ROOT / "data/deploy/incoming" / day
        folder.mkdir(parents=True)
        for k, (_, tile) in enumerate(tiles[i :: len(DAYS)][:20]):
            image = Image.fromarray(tile)
            strange = i >= len(DAYS) - STRANGE
            (ImageOps.invert(image) if strange else image).save(folder / f"{k:02d}.png")


def runs(instance: dg.DagsterInstance) -> None:
    """What Dagster knows of it: a run of the chain, which finds all fresh, and one for each day."""
    from pipelines.definitions import defs

    def run(job: str, **more: Any) -> None:
        assert defs.resolve_job_def(job).execute_in_process(instance=instance, **more).success

    run("chain", asset_selection=[dg.AssetKey(name) for name in jobs.CHAIN])
    for day in DAYS:
        run("deployment", partition_key=day)


def main() -> None:
    fill_tracked(ROOT)
    with contextlib.chdir(ROOT):
        stages()
        incoming()
        home.prepare()
        with dg.DagsterInstance.get() as instance:
            runs(instance)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    main()
