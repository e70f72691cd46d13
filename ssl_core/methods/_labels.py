"""What methods that need labels share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HeadwaterError
from ..types import Task


def need_classes(task: Task) -> int:
    """The number of classes.

    Raises:
        HeadwaterError: no label is known.
    """
    if not task.classes:
        raise HeadwaterError(
            "a method that learns from labels",
            "finds no labelled image",
            "give labels (subfolders or metadata.csv), or set pretrain.method to one without",
        )
    return task.classes


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of labelled images (of this rank) whose largest logit is right; 0 without any."""
    known = labels >= 0
    return ((logits.argmax(1) == labels) & known).sum() / known.sum().clamp_min(1)
