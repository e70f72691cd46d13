"""SupCon (arXiv 2004.11362): as SimCLR, but all images of a class are positives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import dist
from ..heads import projector
from ..losses.supcon import supcon
from ..models import Encoder
from ..types import Task, View
from . import _temperature
from ._monitor import alignment
from ._recipe import Pair
from ._temperature import Temperature


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    temperature: Temperature = 0.1
    hidden: int = 512
    out: int = 128
    layers: int = 2
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)


# Defaults of the authors' code (github.com/HobbitLong/SupContrast, CIFAR); the head from memory.
PAPER = {
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 1e-4,
    "betas": (0.9, 0.999),
    "temperature": 0.07,
    "hidden": 2048,
}
KNOB = "raise pretrain.batch_size, so that images of one class meet"


class Method(nn.Module):
    """Encoder, MLP projector and SupCon. Without labels it is SimCLR."""

    wants = ("labels", "weights")

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, cfg.layers)

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(
        self, views: list[Tensor], step: int, labels: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) and labels (B,) -> loss and monitors (see ``_monitor.alignment``)."""
        t = _temperature.at(self.cfg.temperature, step, self.task)
        z = self.projector(self.encoder(torch.cat(views), need="pooled").pooled).unflatten(
            0, (2, -1)
        )
        shown = alignment(z[0], z[1])  # z: (2, B, D)
        chance = math.log(2 * z.shape[1] * dist.world() - 1)
        return supcon(z, labels, t, weights), shown | {"chance": chance, "temperature": t}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
