"""One training, looked at on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import feed, job, step
from ..stages import _trained
from ._lab import Training

Look = Callable[[Any], dict[str, float]]


def follow(training: Training, marks: Sequence[float], look: Look) -> dict[float, dict[str, float]]:
    """What ``look`` says of the method after each share of its steps, 0 to 1.

    The same batches, views and schedules as in the training itself, without its guard and its
    checkpoints. ``look`` may set the method to eval mode.
    """
    own = _trained.with_budget(training.cfg, training.folder)
    run = job.build(own, training.folder, training.work / "none")
    at = {round(share * run.steps): share for share in marks}
    found: dict[float, dict[str, float]] = {}

    def seen(number: int) -> None:
        if number in at:
            state = torch.random.get_rng_state()
            found[at[number]] = look(run.method)
            torch.random.set_rng_state(state)
            run.method.train()

    run.method.train()
    read = run.reader.batches(own.pretrain.batch_size, 0, run.steps)
    with contextlib.closing(run.telemetry), contextlib.closing(feed.stream(run, read, 0)) as given:
        seen(0)
        for number, batch in enumerate(given):
            step.take(run, [batch], number)
            seen(number + 1)
    return found
