"""RINCE (arXiv 2201.04309): SimCLR with a loss that bears views which do not belong together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..heads import projector
from ..losses.rince import rince
from ..models import Encoder
from ..types import Task, View
from . import _temperature, simclr
from ._monitor import alignment
from ._temperature import Temperature


class Config(simclr.Config):
    """Defaults for small images and data sets of thousands."""

    temperature: Temperature = 0.2
    q: float = 0.1  # towards 0: NT-Xent; 1: symmetric, hence robust, but slow
    lam: float = 0.01  # weight of the negatives


PAPER = simclr.PAPER | {"temperature": 0.1, "q": 0.1, "lam": 0.01}
KNOB = "lower pretrain.options.q towards 0 (NT-Xent)"


class Method(nn.Module):
    """Encoder, MLP projector and RINCE."""

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
        """Two (B, C, S, S) -> loss and monitors (see ``_monitor.alignment``).

        There is no chance level: equal cosines give a loss that depends on their level.
        """
        t = _temperature.at(self.cfg.temperature, step, self.task)
        a, b = self.projector(self.encoder(torch.cat(views)).pooled).chunk(2)  # (2B, D)
        loss = rince(a, b, t, self.cfg.q, self.cfg.lam, weights)
        return loss, alignment(a, b) | {"temperature": t}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
