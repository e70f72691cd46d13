"""Generalised contrastive losses (arXiv 2011.02803): alignment + weight * distribution."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .. import dist
from ..heads import projector
from ..losses import generalised
from ..models import Encoder
from ..types import Task, View
from . import _temperature, simclr
from ._monitor import alignment


class Config(simclr.Config):
    """Defaults for small images and data sets of thousands.

    ``temperature`` is not for ``swd``, ``prior`` is for it only.
    """

    loss: Literal["nt_xent", "decoupled", "swd"] = "decoupled"
    weight: float = 1.0  # of the distribution term
    prior: generalised.Prior = "uniform-sphere"


PAPER = simclr.PAPER
KNOB = "raise pretrain.options.weight (of the distribution term)"


class Method(nn.Module):
    """Encoder, MLP projector and one of the losses."""

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        # A last batch norm would fix the spread that the distance to the prior is to set.
        self.projector = projector(
            encoder.embed_dim, cfg.hidden, cfg.out, cfg.layers, last_norm=cfg.loss != "swd"
        )

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors (see ``_monitor.alignment``).

        ``chance`` is given for weight 1 only: else equal cosines give a loss that depends on
        their level. Directions and prior come from torch's global generator.
        """
        c = self.cfg
        a, b = self.projector(self.encoder(torch.cat(views), need="pooled").pooled).chunk(
            2
        )  # (2B, D)
        if c.loss == "swd":
            return generalised.swd(a, b, c.prior, c.weight), alignment(a, b)
        t = _temperature.at(c.temperature, step, self.task)
        rivals = 2 * len(a) * dist.world() - (1 if c.loss == "nt_xent" else 2)
        chance = {"chance": math.log(rivals)} if c.weight == 1 else {}
        loss = generalised.nt_xent if c.loss == "nt_xent" else generalised.decoupled
        return loss(a, b, t, c.weight), alignment(a, b) | {"temperature": t} | chance

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
