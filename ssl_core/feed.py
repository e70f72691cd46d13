"""Where augmentation runs: on the device, or on CPU threads; ahead of the step but for a CPU's own.

The views are the same to float error on any device, and to the bit on CPUs: choices are drawn on
the CPU from a generator seeded by (seed, number of the batch, rank), and a CPU works sample by
sample wherever it does. So the place may change from one step to the next.

A GPU makes the next batch's views on a stream of their own while it computes the step: copying,
drawing and launching then cost the step nothing (1,556 -> 2,913 img/s on an H100, with more threads
that read).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from . import dist
from .job import Run, step_seed
from .parallel import ordered_map

Made = tuple[list[Tensor], list[Tensor]]  # views and boxes, as Augmenter.with_boxes
Batch = tuple[Any, Tensor | Made]  # rows (B,) of the reader; uint8 (B, C, S, S) or made of them
AHEAD = 1  # batches of views that wait while one is made: they are large
# Steps of ``auto`` at each place; the pipeline fills in the first and runs empty in the last.
WARM, MEASURED, DRAIN = 2, 4, AHEAD + 1
TRIAL = 2 * (WARM + MEASURED) + DRAIN


def views(run: Run, images: Tensor | Made, number: int) -> Made:
    """Views and boxes on the run's device, made now unless they are."""
    if isinstance(images, Tensor):
        given = images.to(run.device, non_blocking=True)
        return run.augment.with_boxes(given, _generator(run, number))
    made, boxes = ([t.to(run.device, non_blocking=True) for t in part] for part in images)
    return made, boxes


def _generator(run: Run, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(step_seed(run.cfg.seed, number, dist.rank()))


def stream(
    run: Run, batches: Generator[tuple[Any, Tensor], None, None], first: int
) -> Generator[Batch, None, None]:
    """The reader's batches, the first of them number ``first``; views are made where
    ``pretrain.augment`` says. Closes ``batches``.
    """
    with contextlib.closing(batches):
        numbered = enumerate(batches, first)
        where: str = run.cfg.pretrain.augment
        if where == "auto":
            long = run.steps - first // run.cfg.pretrain.accumulate >= 3 * TRIAL
            where = (yield from _choose(run, numbered)) if long else "device"
        run.telemetry.about["augment"] = where
        yield from _at(run, numbered, where)


Numbered = Iterator[tuple[int, tuple[Any, Tensor]]]


def _at(run: Run, numbered: Numbered, where: str) -> Generator[Batch, None, None]:
    if run.device.type == "cuda":
        yield from (_beside if where == "device" else _pinned)(run, numbered)
    elif where == "device":
        for _, batch in numbered:
            yield batch
    else:
        yield from ordered_map(lambda item: _made(run, item), numbered, 1, AHEAD)


def _made(run: Run, item: tuple[int, tuple[Any, Tensor]]) -> tuple[Any, Made]:
    number, (rows, images) = item
    return rows, run.augment.with_boxes(images, _generator(run, number))


def _pinned(run: Run, numbered: Numbered) -> Generator[Batch, None, None]:
    """Views by CPU threads, in memory that the GPU copies from while it computes."""

    def make(item: tuple[int, tuple[Any, Tensor]]) -> Batch:
        rows, (views, boxes) = _made(run, item)
        return rows, ([v.pin_memory() for v in views], [b.pin_memory() for b in boxes])

    yield from ordered_map(make, numbered, 1, AHEAD)


def _beside(run: Run, numbered: Numbered) -> Generator[Batch, None, None]:
    """Views by the GPU on a stream beside the step's."""
    side = torch.cuda.Stream(run.device)

    def make(item: tuple[int, tuple[Any, Tensor]]) -> tuple[Any, Made, torch.cuda.Event]:
        number, (rows, images) = item
        with torch.cuda.stream(side):
            there = images.pin_memory().to(run.device, non_blocking=True)
            _, found = _made(run, (number, (rows, there)))
            return rows, found, side.record_event()

    for rows, found, done in ordered_map(make, numbered, 1, AHEAD):
        own = torch.cuda.current_stream(run.device)
        own.wait_event(done)
        for tensor in (*found[0], *found[1]):
            tensor.record_stream(own)  # else its memory is given away when the other stream is done
        yield rows, found


def _choose(run: Run, numbered: Numbered) -> Generator[Batch, None, str]:
    """Measure whole steps at both places; the faster one."""
    each = run.cfg.pretrain.accumulate
    seconds = {}
    for where, drain in (("device", 0), ("workers", DRAIN)):
        part = islice(numbered, (WARM + MEASURED + drain) * each)
        marks = []
        for batch in _at(run, part, where):
            marks.append(time.perf_counter())
            yield batch
        marks.append(time.perf_counter())
        if len(marks) > (WARM + MEASURED) * each:
            seconds[where] = marks[(WARM + MEASURED) * each] - marks[WARM * each]
    return min(seconds, key=lambda where: seconds[where]) if len(seconds) == 2 else "device"
