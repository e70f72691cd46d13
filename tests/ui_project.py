"""A tiny project with a past that Dagster knows: a chain that ran and five days of deployment.

HEADWATER_ROOT=... DAGSTER_HOME=... python tests/ui_project.py

A process of its own: ``assets`` read HEADWATER_ROOT once. All of it runs in one process, which
Dagster would not do: it takes a fifth of the time.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from datetime import date, timedelta
from typing import Any

import dagster as dg
import numpy as np
from conftest import fill_tracked, photo_tiles
from PIL import Image

from assets._dvc import ROOT, with_repo
from pipelines import home
from ssl_core import registry
from ssl_core.__main__ import CHAIN
from ssl_core.config import Paths, load
from ssl_core.stages import _entry

DAYS = tuple(f"{date.today() - timedelta(days=i):%Y-%m-%d}" for i in range(5, 0, -1))
DATA = ("ingest", "validate", "seed_embed", "curate", "shard")
BROKEN = DAYS[-3:]  # the camera sends noise


def stages() -> None:
    """Each product, told to DVC."""
    cfg, paths = load(), Paths(ROOT)
    for name in CHAIN:
        importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)
    if registry.champion(paths.registry) is None:  # so few steps need not beat random init
        model = _entry.enter(cfg, paths, {"candidate": 0.5, "n": 10}, "for the walk")
        registry.promote(paths.registry, model, {"reason": "for the walk"})
    with_repo(lambda repo: [repo.commit(name, force=True) for name in CHAIN])


def incoming() -> None:
    """Tiles that the chain has not seen, day by day; then noise."""
    tiles = photo_tiles()[1::2]
    noise = np.random.default_rng(0)
    for i, day in enumerate(DAYS):
        folder = ROOT / "data/deploy/incoming" / day
        folder.mkdir(parents=True)
        for k, (_, tile) in enumerate(tiles[i :: len(DAYS)]):
            pixels = noise.integers(256, size=tile.shape, dtype=np.uint8) if day in BROKEN else tile
            Image.fromarray(pixels).save(folder / f"{k:02d}.png")


def runs(instance: dg.DagsterInstance) -> None:
    """What Dagster knows of it: a run that finds the data fresh, and one for each day."""
    from pipelines.definitions import defs

    def run(job: str, **more: Any) -> None:
        assert defs.resolve_job_def(job).execute_in_process(instance=instance, **more).success

    run("chain", asset_selection=[dg.AssetKey(name) for name in DATA])
    for day in DAYS:
        run("deployment", partition_key=day)


def main() -> None:
    fill_tracked(ROOT)
    params = ROOT / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 4", "epochs: 1"))
    with contextlib.chdir(ROOT):
        stages()
        incoming()
        home.prepare()
        with dg.DagsterInstance.get() as instance:
            runs(instance)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    main()
