"""Temperatures: fixed, on a schedule, or by the number of classes."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ..config import Section
from ..errors import HeadwaterError
from ..types import Task


class Schedule(Section):
    """A temperature that moves.

    ``linear`` goes from ``start`` to ``end`` in ``share`` of the steps and stays; ``cosine``
    swings from ``start`` to ``end`` and back every ``share`` of the steps (arXiv 2303.13664);
    ``classes`` stands still, between ``end`` for two classes and ``start`` for a thousand.
    """

    kind: Literal["linear", "cosine", "classes"]
    start: float = Field(default=0.1, gt=0)
    end: float = Field(default=0.5, gt=0)
    share: float = Field(default=1.0, gt=0)


Temperature = float | Schedule


def by_classes(classes: int, low: float, high: float) -> float:
    """``high`` for two classes, ``low`` for a thousand or more, straight in log-log between.

    Fewer classes mean more same-class negatives per anchor, which a small temperature pushes
    away hardest (arXiv 2012.09740). A starting point, not a law: sweep where it matters.
    """
    share = math.log(min(max(classes, 2), 1000) / 2) / math.log(500)
    return float(high * (low / high) ** share)


def at(t: Temperature, step: int, task: Task) -> float:
    """The temperature of one step.

    Raises:
        HeadwaterError: by the number of classes, but no label is known.
    """
    if not isinstance(t, Schedule):
        return t
    if t.kind == "classes":
        if not task.classes:
            raise HeadwaterError(
                "temperature by the number of classes",
                "needs labels to count them",
                "give labels, or set pretrain.options.temperature to a number",
            )
        return by_classes(task.classes, t.start, t.end)
    done = step / max(1.0, t.share * task.steps)
    if t.kind == "linear":
        return t.start + (t.end - t.start) * min(1.0, done)
    return t.end + (t.start - t.end) * (1 + math.cos(2 * math.pi * done)) / 2
