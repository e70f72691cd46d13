"""Data path over 1, 2 ... workers, from shards to views: how much a further core brings.

A worker of ours is a thread of the reader and one of the augmenter; lightly's is a process of the
DataLoader. Each has as many cores as workers (Linux).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import _common, _images, data_path


def _counts() -> list[int]:
    return [n for n in (1, 2, 4, 8, 16) if n <= len(os.sched_getaffinity(0))]


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """This thread, and threads and processes it starts, on so many cores."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:count])
    torch.set_num_threads(count)
    yield
    os.sched_setaffinity(0, before)
    torch.set_num_threads(threads)


def _ours(tars: Path, workers: int) -> _common.Work:
    ours = data_path.Ours(tars, data_path.DINO, workers)
    with _cores(workers):
        ours()  # the reader's threads stay on these cores

    def work() -> int:
        with _cores(workers):
            for _ in range(2 * workers):
                ours()
        return 2 * workers * data_path.BATCH

    return work


def _lightly(files: Path, workers: int) -> _common.Work:
    batches: Iterator[Any] = data_path.lightly_batches(files, "DINO", workers)
    with _cores(workers):
        next(batches)  # workers live on, on these cores: their start does not count

    def work() -> int:
        for _ in range(workers):
            next(batches)
        return workers * data_path.BATCH

    return work


def run(rounds: int = 3) -> dict[str, Any]:
    """Measure; about two minutes on two cores."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        files, tars = _images.write(Path(name), 512, data_path.SIDE)
        cases = {f"headwater, {n} workers": _ours(tars, n) for n in _counts()}
        rows = _common.compare("headwater", cases, next(iter(cases)), rounds)
        # One after the other: idle workers of a DataLoader go on filling their queues.
        for n in _counts():
            case = f"lightly, {n} workers"
            rows += _common.compare("lightly", {case: _lightly(files, n)}, case, rounds)
        first = next(r for r in rows if r.group == "lightly").median
        rows = [r if r.group == "headwater" else _common.against(r, first) for r in rows]
    return _common.report(
        "scaling",
        "Data path by workers: DINO 2×224+6×96 from 256 px JPEG",
        rows,
        batch=data_path.BATCH,
        ratio="to one worker of the same",
        peers=_common.versions("lightly"),
    )


if __name__ == "__main__":
    run()
