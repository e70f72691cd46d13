"""Training over compute only: what share of the step's speed is left with the data path in front.

The same run (ssl_core.job, ssl_core.feed, ssl_core.step: ViT-Ti/16, SimCLR, 2×224 from 256 px
JPEG shards) in two ways, in turns: whole, with reader and augmentation; and on one fixed batch of
ready views. On a CPU both compete for the same cores, so the share cannot exceed
``compute / (compute + data)`` in core seconds; that bound is measured too, from the data path alone
on all cores. On a GPU the data path only has to keep up.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import _common, _images
from ssl_core import feed, job, step
from ssl_core.config import Config
from ssl_core.parallel import keep_memory

SIDE, COUNT = 256, 192


def config(method: str, batch: int, augment: str) -> Config:
    pretrain = {
        "method": method,
        "recipe": "paper",
        "options": {"optimizer": "adamw", "betas": [0.9, 0.98]},
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"img_size": 224, "dynamic_img_size": True},
        "image_size": SIDE,
        "crop_size": 224,
        "batch_size": batch,
        "epochs": 1000,
        "augment": augment,
    }
    return Config.model_validate({"pretrain": pretrain})


class Training:
    """Steps of a run, as ``ssl_core.train`` takes them."""

    def __init__(self, tars: Path, work: Path, method: str, batch: int, augment: str) -> None:
        keep_memory()  # as train.fit does
        work.mkdir()
        self.run = job.build(config(method, batch, augment), tars, work)
        self.run.telemetry.flops = 0.0  # not counted: it would be an extra pass
        self.batch, self.number = batch, 0
        self.run.method.train()

    def stream(self) -> contextlib.closing[Any]:
        read = self.run.reader.batches(self.batch, self.number)
        return contextlib.closing(feed.stream(self.run, read, self.number))

    def steps(self, batches: Iterator[Any], count: int) -> int:
        for _ in range(count):
            step.take(self.run, [next(batches)], self.number)
            self.number += 1
        return count * self.batch

    def whole(self, count: int) -> int:
        """A run of its own, so that the pipeline's filling counts as well."""
        with self.stream() as batches:
            return self.steps(batches, count)

    def data(self, count: int) -> int:
        """Reader and augmentation without steps."""
        with self.stream() as batches:
            for number in range(self.number, self.number + count):
                feed.views(self.run, next(batches)[1], number)
        return count * self.batch

    def fixed(self) -> _Fixed:
        with self.stream() as batches:
            rows, images = next(batches)
        return _Fixed((rows, feed.views(self.run, images, 0)))


class _Fixed:
    """One batch of ready views, again and again."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> _Fixed:
        return self

    def __next__(self) -> Any:
        return self.batch


def run(rounds: int = 5, method: str = "simclr") -> dict[str, Any]:
    """Measure; about three minutes on two cores."""
    gpu = torch.cuda.is_available()
    batch, count = (256, 30) if gpu else (16, 5)
    with tempfile.TemporaryDirectory() as name:
        _, tars = _images.write(Path(name), COUNT, SIDE)
        runs = {
            place: Training(tars, Path(name) / place, method, batch, place)
            for place in ("device", "workers")
        }
        ready = runs["device"].fixed()
        cases = {
            "compute only": lambda: runs["device"].steps(ready, count),
            "training, views made on the device": lambda: runs["device"].whole(count),
            "training, views made by workers": lambda: runs["workers"].whole(count),
            "data path only": lambda: runs["device"].data(4 * count),
        }
        rows = _common.compare(f"{method}, ViT-Ti/16", cases, "compute only", rounds)
    compute, data = rows[0].median, rows[3].median
    return _common.report(
        "end_to_end",
        "Training over compute only",
        rows,
        batch=batch,
        bound=f"{data / (data + compute):.3f} where data path and step share the same cores",
        best=f"{max(r.ratio for r in rows[1:3]):.3f}",
    )


if __name__ == "__main__":
    run()
