"""The image sets of the comparison of methods, made into shards once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ..artifacts import atomic_dir
from ..config import Config, Curate, Data, Paths, Shard
from ..errors import HeadwaterError
from ..progress import Reporter
from . import curate, ingest, seed_embed, shard, validate

PREPARE = (ingest, validate, seed_embed, curate, shard)


def prepared(cfg: Config, paths: Paths, name: str, where: str, report: Reporter) -> Path:
    """The shards of one set: a folder with shards, or what a script or source gives.

    Raises:
        HeadwaterError: nothing is there.
    """
    place = paths.root / where
    if (place / "index.json").exists():
        return place
    root = paths.runs / "bench" / name
    if not place.exists():
        fix = "name a folder of shards, a source or a script in bench.sets"
        raise HeadwaterError(f"bench.sets.{name} = {where}", "is not there", fix)
    if not (root / "shards/index.json").exists():
        report.log(f"{name}: preparing {where}")
        _prepare(cfg, place.resolve(), root)
    return root / "shards"


def _prepare(cfg: Config, place: Path, root: Path) -> None:
    with atomic_dir(root) as temp:
        inside, source = Paths(temp), str(place)
        if place.suffix == ".py":
            subprocess.run([sys.executable, place, "--root", temp], check=True, capture_output=True)
            source = "data/raw"
        own = cfg.model_copy(
            update={
                "data": Data(sources=(source,), test_fraction=cfg.bench.test_fraction),
                "curate": Curate(steps=("exact",), keep=1.0),
                "shard": Shard(max_side=cfg.bench.image_size),
            }
        )
        for stage in PREPARE:
            stage.run(own, inside)
        inside.shards.rename(temp / "shards")
        for rest in ("data", "runs"):
            shutil.rmtree(temp / rest)
