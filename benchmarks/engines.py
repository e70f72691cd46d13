"""Who does the work on single images: threads, Ray Data, tasks of Ray, or Daft on Ray?

    uv pip install ray daft && python -m benchmarks.engines [--images 20000] [--rounds 3]

All do what stage ingest does with a file (read, checksum, header, full decode, pHash), on the same
JPEGs of 96 px, with two processes or threads, and hand the facts back to this process. One Ray is
started for all; how long that and the first task take stands beside the rates. ``order`` says
whether results came in the order of the files without being sorted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import _common
from ssl_core import engine
from ssl_core.config import Data, Scale
from ssl_core.stages import ingest

WORKERS, CHUNK = 2, ingest.CHUNK
LOCAL, RAY = Scale(), Scale(engine="ray", workers=WORKERS)
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")


def pictures(folder: Path, count: int) -> list[str]:
    """JPEGs that are all different."""
    rng, found = np.random.default_rng(0), []
    ramp = np.linspace(0, 215, 96 * 96 * 3).reshape(96, 96, 3)
    for i in range(count):
        pixels = (ramp + rng.integers(0, 40, (96, 96, 1))).astype(np.uint8)
        file = folder / f"{i:06d}.jpg"
        Image.fromarray(pixels).save(file, quality=85)
        found.append(str(file))
    return found


def facts(refs: list[str]) -> list[Any]:
    """What ingest finds out about some files."""
    return [ingest.examine(Path("/"), Data(), ref) for ref in refs]


def ours(refs: list[str], scale: Scale) -> list[Any]:
    work = partial(ingest.examine, Path("/"), Data())
    return list(engine.each(work, refs, scale, ahead=64, chunk=CHUNK))


def by_tasks(refs: list[str]) -> list[Any]:
    """One task for each chunk, a few more than there are workers at a time."""
    import ray

    task = ray.remote(facts)
    parts = iter([refs[i : i + CHUNK] for i in range(0, len(refs), CHUNK)])

    def results() -> Iterator[Any]:
        waiting = [task.remote(p) for _, p in zip(range(3 * WORKERS), parts, strict=False)]
        while waiting:
            yield from ray.get(waiting.pop(0))
            if (part := next(parts, None)) is not None:
                waiting.append(task.remote(part))

    return list(results())


def by_daft(refs: list[str]) -> list[Any]:
    """A user-defined function over partitions of the size of our chunks."""
    import daft

    @daft.udf(return_dtype=daft.DataType.python(), batch_size=CHUNK)
    def look(column: Any) -> list[Any]:
        return facts(column.to_pylist())

    frame = daft.from_pydict({"ref": refs}).into_partitions(max(WORKERS, len(refs) // CHUNK))
    found: list[Any] = frame.with_column("facts", look(daft.col("ref"))).to_pydict()["facts"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    import daft

    cases = {
        "threads": partial(ours, scale=LOCAL),
        "Ray Data": partial(ours, scale=RAY),
        "Ray tasks": by_tasks,
        "Daft on Ray": by_daft,
    }
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, engine.session(RAY):
        started = time.perf_counter() - begun
        daft.set_runner_ray(noop_if_initialized=True)
        refs = pictures(Path(name), given.images)
        order, first = {}, {}
        expected = [astuple(f) for f in cases["threads"](refs[:1024])]
        for case, work in cases.items():
            begun = time.perf_counter()
            found = [astuple(f) for f in work(refs[:1024])]
            first[case] = round(time.perf_counter() - begun, 1)
            order[case] = found == expected
            assert sorted(found) == sorted(expected), case
        rows = _common.compare(
            f"{given.images} JPEGs of 96 px",
            {case: partial(lambda w: len(w(refs)), work) for case, work in cases.items()},
            "threads",
            rounds=given.rounds,
            warmup=0,
        )
    _common.report(
        "engines",
        "Work on single images: threads, Ray Data, Ray tasks, Daft on Ray",
        rows,
        workers=WORKERS,
        chunk=CHUNK,
        versions=_common.versions("ray", "daft"),
        **{
            "seconds to start Ray": round(started, 1),
            "seconds for the first 1,024, in this order (the first starts the workers)": first,
            "results in order": order,
            "load of the machine when done": os.getloadavg()[0],
        },
    )


if __name__ == "__main__":
    main()
