"""What an image costs beside its training: bytes of each product, CPU seconds of each stage.

``python -m benchmarks.footprint [--images 1500]``, three minutes of one core. Photographs (crops of
500×375, JPEG) go through the stages from ingest to shard at two numbers; what one more image costs
is the slope between them, so that what a stage costs once does not count. Seconds are CPU
seconds of this process and its threads: other work on the machine does not count.

``views``: CPU seconds of the views of an image, from shards of 256 px, beside SimCLR's in turns.
``copies``: the most memory that stage seed_embed takes for its features, in their own size; the
encoder is left out. ``width``: curation of embeddings of 1,280 dimensions, as the seed encoder
gives them, beside the 64 that ``benchmarks.curation`` measures to a million.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

from benchmarks import _common, _images, curation, data_path
from ssl_core.artifacts import write_json
from ssl_core.augment import Augmenter
from ssl_core.config import Config, Paths
from ssl_core.parallel import keep_memory
from ssl_core.reader import ShardReader
from ssl_core.stages import curate as curate_stage
from ssl_core.stages import ingest, seed_embed, shard, validate
from ssl_core.types import View

SIDE = 256
STAGES = {"ingest": ingest, "validate": validate, "seed_embed": seed_embed}
STAGES |= {"curate": curate_stage, "shard": shard}
FILES = {
    "manifest": "manifest/manifest.parquet",
    "seed features": "seed_embeddings/embeddings.npy",
    "curated": "curated/curated.parquet",
    "shard index": "shards/index.parquet",
}
MAE = [View(224, (0.2, 1.0))]
WIDE, WIDTH_IMAGES, COPIES_IMAGES = 1280, 30_000, 60_000


def chain(folder: Path, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """Run the stages on so many photographs; bytes of products and CPU seconds of stages."""
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(_images.photographs(count, seed=count)):
        (folder / f"images/{i:06d}.jpg").write_bytes(_images.jpeg(image))
    # Crops of two photographs are copies of each other: only equal bytes may go here.
    changes = {"data": {"sources": ["images"]}, "curate": {"steps": ["exact"]}}
    limits = {"min_classes": 0, "max_unlabelled_share": 1}
    cfg = Config.model_validate(changes | {"validate": limits, "shard": {"max_side": SIDE}})
    paths, seconds = Paths(folder), {}
    for name, stage in STAGES.items():
        start = time.process_time()
        stage.run(cfg, paths)
        seconds[name] = time.process_time() - start
    held = {key: float((paths.products / name).stat().st_size) for key, name in FILES.items()}
    held["shards"] = float(sum(f.stat().st_size for f in paths.shards.glob("*.tar")))
    held["curated in memory"] = float(_frame(paths).memory_usage(deep=True, index=False).sum())
    return held, seconds


def _frame(paths: Paths) -> pd.DataFrame:
    return pd.read_parquet(paths.curated / "curated.parquet")


def slopes(count: int) -> dict[str, dict[str, float]]:
    """Bytes and CPU seconds of one more image."""
    few = count // 4
    with tempfile.TemporaryDirectory() as name:
        chain(Path(name) / "warm", 120)  # imports
        small, large = (chain(Path(name) / str(n), n) for n in (few, count))

    def slope(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
        return {key: (b[key] - a[key]) / (count - few) for key in b}

    return {
        "bytes_per_image": slope(small[0], large[0]),
        "cpu_seconds_per_image": slope(small[1], large[1]),
    }


def views(rounds: int = 5) -> list[_common.Row]:
    """Images per CPU second: the views of three methods, and the image alone."""
    recipes = {"SimCLR 2×224": data_path.SIMCLR, "DINO 2×224+6×96": data_path.DINO}
    recipes |= {"MAE 1×224": MAE, "image alone": []}
    with tempfile.TemporaryDirectory() as name:
        _, tars = _images.write(Path(name), data_path.COUNT, SIDE)
        cases = {key: _epoch(tars, value) for key, value in recipes.items()}
        group = f"JPEG {SIDE} px"
        return _common.compare(group, cases, "SimCLR 2×224", rounds, clock=time.process_time)


def _epoch(tars: Path, chosen: list[View]) -> _common.Work:
    """A reader of its own each time: what it reads ahead must not fall on the next case."""
    augment = Augmenter(chosen, data_path.MEAN, data_path.STD) if chosen else None

    def work() -> int:
        reader = ShardReader(tars, "train", SIDE, threads=1, cache_bytes=0)
        done = 0
        for number, (_, images) in enumerate(reader.batches(data_path.BATCH, steps=6)):
            if augment:
                augment(images, torch.Generator().manual_seed(number))
            done += len(images)
        return done

    return work


def width(count: int = WIDTH_IMAGES) -> list[dict[str, Any]]:
    """Curation at two widths of the embeddings."""
    found = []
    for dimensions in (curation.DIMENSIONS, WIDE):
        curation.DIMENSIONS = dimensions
        found.append(curation.case("all", count) | {"dimensions": dimensions})
    return found


def copies(count: int = COPIES_IMAGES) -> float:
    """Peak of stage seed_embed on features of an encoder that costs nothing."""
    rng = np.random.default_rng(0)
    changes = {
        "load": lambda root, own, channels, refs: refs,
        "embed": lambda own, refs: rng.normal(size=(len(refs), WIDE)).astype(np.float32),
        "require_valid": lambda paths: None,
        "write_lineage": lambda *_: None,
    }
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        for key, value in changes.items():
            stack.enter_context(mock.patch.object(seed_embed, key, value))
        paths = Paths(Path(name))
        paths.manifest.mkdir(parents=True)
        keys = [f"{i:064x}" for i in range(count)]
        frame = pd.DataFrame({"path": keys, "sha256": keys})
        frame.to_parquet(paths.manifest / "manifest.parquet")
        tracemalloc.start()
        seed_embed.run(Config(), paths)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / (count * WIDE * 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500)
    args = parser.parse_args()
    _common.one_core()
    keep_memory()  # as training does
    found = {"name": "footprint", "machine": _common.machine()}
    found |= {"about": {"images": args.images, "side": SIDE}, "width": width()}
    found |= slopes(args.images) | {"copies": copies()}  # after the stage has been imported
    found |= {"views": [asdict(row) for row in views()]}
    write_json(_common.RESULTS / "footprint.json", found)
    for kind in ("bytes_per_image", "cpu_seconds_per_image"):
        for key, value in found[kind].items():
            print(f"{kind:<24} {key:<20} {value:12.4f}")
    print(f"seed features are held {found['copies']:.2f} times")
    print(_common.markdown([_common.Row(**row) for row in found["views"]], "img / CPU s"))
    for row in found["width"]:
        print(f"{row['dimensions']} dimensions: {row['cpu_seconds']:.1f} CPU s, {row['steps']}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
