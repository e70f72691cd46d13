"""Memory over one epoch of a large split: a line per tenth, and the slope.

``python -m benchmarks.memory [--samples 1000000] [--folder F]``. The split is written first, by a
process of its own: a few encoded images under as many keys as asked for, 3 KB of disk each. With
``--folder`` it is kept there and used again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks._common import RESULTS, machine
from ssl_core.artifacts import read_json, sha256_file, write_json

SIDE, DISTINCT, BATCH = 32, 64, 256
PER_SHARD = 10_000
Point = dict[str, float]


def memory() -> dict[str, float]:
    """MiB of this process: all that is resident, and what is its own (no files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {"rss": int(found["VmRSS"]) / 1024, "own": int(found["RssAnon"]) / 1024}


def one_shard(folder: Path, count: int) -> pd.DataFrame:
    """Write ``count`` samples into one shard of the train split; returns its index."""
    from ssl_core import shards

    rng = np.random.default_rng(0)
    images = []
    for _ in range(DISTINCT):
        out = io.BytesIO()
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    samples = (
        shards.Sample("train", f"{i:064x}", "jpg", images[i % DISTINCT], f"c{i % 10}", "g", "m")
        for i in range(count)
    )
    return shards.write(folder, samples, 2**30, SIDE)


def build(folder: Path, count: int) -> None:
    """Write ``count`` samples of the train split: one shard, and copies of it.

    The index names each sample by a key of its own, which the tars' members repeat.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = one_shard(folder, min(count, PER_SHARD))
    about = read_json(folder / "index.json")
    (name,) = about["shards"]
    parts = []
    for shard in range(-(-count // PER_SHARD)):
        part = first.head(count - shard * PER_SHARD).copy()
        numbers = range(shard * PER_SHARD, shard * PER_SHARD + len(part))
        part["key"], part["group"] = [f"{i:064x}" for i in numbers], [f"g{i}" for i in numbers]
        part["shard"] = f"train-{shard:06d}.tar"
        if shard:
            shutil.copyfile(folder / name, folder / f"train-{shard:06d}.tar")
        parts.append(part)
    pd.concat(parts).to_parquet(folder / "index.parquet", engine="pyarrow", index=False)
    about["shards"] = {f"train-{i:06d}.tar": about["shards"][name] for i in range(len(parts))}
    about["index.parquet"] = sha256_file(folder / "index.parquet")
    write_json(folder / "index.json", about)


@contextlib.contextmanager
def split(folder: Path | None, count: int) -> Iterator[Path]:
    """A folder that holds the split; a temporary one if none is given."""
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (place / "index.json").exists():
            command = [sys.executable, "-m", "benchmarks.memory", "--build", str(place)]
            subprocess.run([*command, "--samples", str(count)], check=True)
        yield place


def read(folder: Path, epochs: float) -> tuple[dict[str, Any], list[Point]]:
    """Read the split in training's order; a point per tenth of an epoch."""
    import torch

    from ssl_core.reader import ShardReader

    before = memory()
    reader = ShardReader(folder, "train", SIDE)
    opened = memory()
    steps = round(epochs * len(reader) / BATCH)
    marks = {max(1, round(k * len(reader) / 10 / BATCH)) for k in range(1, int(epochs * 10) + 1)}
    points: list[Point] = []
    start = last = time.perf_counter()
    done = total = 0
    for step, (_, images) in enumerate(reader.batches(BATCH, steps=steps), 1):
        done, total = done + len(images), total + int(images[0, 0, 0, 0])
        if step in marks or step == 1:
            now = time.perf_counter()
            points.append({"samples": step * BATCH, "rate": done / (now - last), **memory()})
            print("{samples:>10,.0f} samples  rss {rss:8.1f} MiB  own {own:8.1f} MiB  {rate:9,.0f} "
                  "img/s".format(**points[-1]), flush=True)  # fmt: skip
            last, done = now, 0
    rate = steps * BATCH / (time.perf_counter() - start)
    about = {
        "samples": len(reader),
        "shards": len(reader.store.about["shards"]),
        "rate": rate,
        "before": before,
        "opened": opened,
        "torch_threads": torch.get_num_threads(),
        "reader_threads": reader.threads,
    }
    return about, points


def slope(points: list[Point], key: str = "rss") -> float:
    """MiB per 100,000 samples, least squares, over all but the first tenth (buffers fill up)."""
    settled = points[2:] if len(points) > 3 else points
    x, y = ([p[k] for p in settled] for k in ("samples", key))
    return float(np.polyfit(np.array(x) / 1e5, np.array(y), 1)[0])


def picture(points: list[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.2))
    for key, name in (("rss", "resident"), ("own", "of it anonymous")):
        axis.plot([p["samples"] for p in points], [p[key] for p in points], "o-", label=name)
    axis.set(xlabel="samples read", ylabel="MiB", ylim=(0, None), title="Memory while reading")
    axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--build", type=Path, help="only write the split")
    args = parser.parse_args()
    if args.build:
        build(args.build, args.samples)
        return
    with split(args.folder, args.samples) as folder:
        size = sum(s["bytes"] for s in read_json(folder / "index.json")["shards"].values())
        about, points = read(folder, args.epochs)
    found = {"name": "memory", "machine": machine(), "about": about | {"bytes": size}}
    found |= {"points": points, "slope_mib_per_100k": {k: slope(points, k) for k in ("rss", "own")}}
    write_json(RESULTS / "memory.json", found)
    picture(points, RESULTS / "memory.png")
    print(f"{about['samples']:,} samples in {about['shards']} shards, {size / 2**30:.1f} GiB")
    print(f"opened at {about['opened']['rss']:.0f} MiB; {about['rate']:,.0f} img/s over all")
    print(f"slope {found['slope_mib_per_100k']['rss']:+.2f} MiB per 100,000 samples")


if __name__ == "__main__":
    main()
