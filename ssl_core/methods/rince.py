"""RINCE (arXiv 2201.04309): SimCLR with a loss that bears views which do not belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses.rince import rince
from . import _temperature, simclr
from ._monitor import alignment


class Config(simclr.Config):
    """Defaults for small images and data sets of thousands."""

    q: float = 0.1  # towards 0: NT-Xent; 1: symmetric, hence robust, but slow
    lam: float = 0.01  # weight of the negatives


PAPER = simclr.PAPER | {"q": 0.1, "lam": 0.01}
KNOB = "lower pretrain.options.q towards 0 (NT-Xent)"


class Method(simclr.Method):
    """Encoder, MLP projector and RINCE."""

    cfg: Config

    def forward(
        self, views: list[Tensor], step: int, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors (see ``_monitor.alignment``).

        There is no chance level: equal cosines give a loss that depends on their level.
        """
        t = _temperature.at(self.cfg.temperature, step, self.task)
        a, b = self.projector(self.encoder(torch.cat(views), need="pooled").pooled).chunk(
            2
        )  # (2B, D)
        loss = rince(a, b, t, self.cfg.q, self.cfg.lam, weights)
        return loss, alignment(a, b) | {"temperature": t}
