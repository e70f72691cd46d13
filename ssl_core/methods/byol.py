"""BYOL (arXiv 2006.07733): predict a momentum teacher's projection of the other view."""

from __future__ import annotations

import torch
from torch import Tensor

from ..heads import projector
from ..losses.negative_cosine import byol
from ..models import Encoder
from ..types import Task, View
from ._monitor import alignment
from ._recipe import BYOL_COLOURS, Pair, Range
from ._teacher import Taught, follow, frozen_copy, momentum


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    scale: Range = (0.4, 1.0)
    hidden: int = 512
    out: int = 128
    momentum: float | None = None  # of the teacher at first, None: by the steps; 1 at the end


# From memory but for head sizes and colours. There, LARS leaves out biases and batch norms.
PAPER = BYOL_COLOURS | {
    "optimizer": "lars",
    "lr": 0.2,
    "weight_decay": 1.5e-6,
    "betas": (0.9, 0.999),
    "hidden": 4096,
    "out": 256,
    "momentum": 0.996,
    "scale": (0.08, 1.0),
}
KNOB = "raise pretrain.options.momentum towards 1"


class Method(Taught):
    """Encoder, projector and predictor; a momentum copy of the first two as teacher."""

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, last_norm=False)
        self.predictor = projector(cfg.out, cfg.hidden, cfg.out, last_norm=False)
        self.teacher = frozen_copy(self.encoder)
        self.teacher_projector = frozen_copy(self.projector)
        self.train()

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss in [0, 8] and monitors (see ``_monitor.alignment``).

        Each view passes alone: batch norm must not mix views of different colours. The loss
        is 0 when all collapse to one point: only ``std`` of the projections tells.
        """
        z1, z2 = (self.projector(self.encoder(v, need="pooled").pooled) for v in views)  # (B, out)
        with torch.no_grad():
            t1, t2 = (self.teacher_projector(self.teacher(v, need="pooled").pooled) for v in views)
        return byol(self.predictor(z1), t2) + byol(self.predictor(z2), t1), alignment(z1, z2)

    def after_step(self, step: int) -> None:
        """Move the teacher."""
        m = momentum(step, self.task.steps, self.cfg.momentum)
        follow(self.teacher, self.encoder, m)
        follow(self.teacher_projector, self.projector, m)
