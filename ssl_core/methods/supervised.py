"""Plain cross-entropy on the labelled images: the baseline of every comparison.

Also the second stage after MAE as pre-pretraining (arXiv 2303.13496).
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor, nn

from ..losses.cross_entropy import cross_entropy
from ..models import Encoder
from ..types import Task, View
from ._labels import accuracy, need_classes
from ._recipe import Pair


class Config(Pair):
    """Defaults for small images and data sets of thousands; of two chances the first counts."""

    lr: float = 4e-3
    label_smoothing: float = Field(default=0.0, ge=0, le=1)


# From memory: the usual recipe of ResNets on ImageNet (arXiv 1512.03385), with today's crops.
PAPER = {
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 1e-4,
    "betas": (0.9, 0.999),
    "scale": (0.08, 1.0),
    "grey": 0.0,
}
KNOB = "raise pretrain.options.label_smoothing"


class Method(nn.Module):
    """Encoder and linear classifier.

    Raises:
        HeadwaterError: no label is known.
    """

    wants = ("labels",)

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.classifier = nn.Linear(encoder.embed_dim, need_classes(task))
        self.encoder = encoder

    @property
    def views(self) -> list[View]:
        """One view."""
        c = self.cfg
        return [c.view(self.task.image_size, c.scale, c.blur[0], c.solarise[0])]

    def forward(
        self, views: list[Tensor], step: int, labels: Tensor
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """One (B, C, S, S) and labels (B,), -1 for unknown -> loss and accuracy on this batch."""
        logits = self.classifier(self.encoder(views[0], need="pooled").pooled)  # (B, C)
        value = cross_entropy(logits, labels, self.cfg.label_smoothing)
        chance = math.log(self.task.classes)
        return value, {"accuracy": accuracy(logits, labels), "chance": chance}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
