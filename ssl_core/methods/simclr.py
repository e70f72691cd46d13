"""SimCLR (arXiv 2002.05709): agree on two views of an image against all others in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import dist
from ..heads import projector
from ..losses.nt_xent import nt_xent
from ..models import Encoder
from ..types import Task, View
from . import _temperature
from ._monitor import alignment
from ._recipe import Pair
from ._temperature import Temperature


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    temperature: Temperature = 0.2
    hidden: int = 512
    out: int = 128
    layers: int = 2
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)


PAPER = {
    "optimizer": "lars",
    "lr": 0.3,
    "weight_decay": 1e-6,
    "betas": (0.9, 0.999),
    "temperature": 0.1,
    "hidden": 2048,
    "scale": (0.08, 1.0),
    "jitter": (0.8, 0.8, 0.8, 0.2),
    "blur": (0.5, 0.5),
}
KNOB = "raise pretrain.batch_size or pretrain.options.temperature"


class Method(nn.Module):
    """Encoder, MLP projector and NT-Xent."""

    wants = ("weights",)

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
        self, views: list[Tensor], step: int, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors (see ``_monitor.alignment``)."""
        t = _temperature.at(self.cfg.temperature, step, self.task)
        a, b = self.projector(self.encoder(torch.cat(views), need="pooled").pooled).chunk(
            2
        )  # (2B, D)
        chance = math.log(2 * len(a) * dist.world() - 1)
        return nt_xent(a, b, t, weights), alignment(a, b) | {"chance": chance, "temperature": t}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
