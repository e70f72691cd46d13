"""MoCo v3 (arXiv 2104.02057): find the momentum encoder's key of the other view in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import dist
from ..errors import HeadwaterError
from ..heads import projector
from ..losses.info_nce import moco
from ..models import Encoder
from ..types import Task, View
from . import _temperature
from ._monitor import alignment
from ._recipe import BYOL_COLOURS, Pair
from ._teacher import Taught, follow, frozen_copy, momentum
from ._temperature import Temperature


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    temperature: Temperature = 0.2
    hidden: int = 512
    out: int = 128
    momentum: float | None = None  # of the teacher at first, None: by the steps; 1 at the end
    freeze_patch: bool = False  # a ViT's patch projection stays random


# The ViT's recipe. Its fixed sine-cosine positions are the encoder's business.
PAPER = BYOL_COLOURS | {
    "lr": 1.5e-4,
    "weight_decay": 0.1,
    "betas": (0.9, 0.999),  # from memory
    "hidden": 4096,
    "out": 256,
    "freeze_patch": True,
    "scale": (0.08, 1.0),
}
KNOB = "raise pretrain.options.momentum, or set pretrain.options.freeze_patch: true"


class Method(Taught):
    """Encoder, projector and predictor for queries; a momentum copy of the first two for keys.

    ViTs get a projector of three layers and a predictor that ends with a batch norm; CNNs one
    of two layers and a predictor that does not. No layer has a bias.

    Raises:
        HeadwaterError: ``freeze_patch`` with an encoder that is no ViT.
    """

    wants = ("weights",)

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        if cfg.freeze_patch:
            freeze_patch(encoder)
        vit = encoder.is_vit
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, 3 if vit else 2)
        predictor = projector(cfg.out, cfg.hidden, cfg.out)
        self.predictor = predictor if vit else predictor[:-1]
        self.teacher = frozen_copy(self.encoder)
        self.teacher_projector = frozen_copy(self.projector)
        self.train()

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(
        self, views: list[Tensor], step: int, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors (see ``_monitor.alignment``, of projections).

        Each view passes alone: batch norm must not mix views of different colours.
        """
        t = _temperature.at(self.cfg.temperature, step, self.task)
        z1, z2 = (self.projector(self.encoder(v, need="pooled").pooled) for v in views)  # (B, out)
        with torch.no_grad():
            k1, k2 = (self.teacher_projector(self.teacher(v, need="pooled").pooled) for v in views)
        loss = moco(self.predictor(z1), k2, t, weights) + moco(self.predictor(z2), k1, t, weights)
        chance = 4 * t * math.log(len(z1) * dist.world())
        return loss, alignment(z1, z2) | {"chance": chance, "temperature": t}

    def after_step(self, step: int) -> None:
        """Move the teacher.

        The paper moves it at the start of a step, before it computes keys. Here the end of the
        step before does: the same but for the very first step, in which the teacher equals the
        student anyway, and for the momentum's schedule, which is one step behind.
        """
        m = momentum(step, self.task.steps, self.cfg.momentum)
        follow(self.teacher, self.encoder, m)
        follow(self.teacher_projector, self.projector, m)


def freeze_patch(encoder: Encoder) -> None:
    """Keep a ViT's patch projection as it was initialised (section 4 of the paper).

    Raises:
        HeadwaterError: the encoder is no ViT.
    """
    if not encoder.is_vit:
        raise HeadwaterError(
            f"backbone '{encoder.name}'",
            "has no patch projection to freeze",
            "set pretrain.options.freeze_patch: false, or pretrain.backbone to a vit_*",
        )
    projection: nn.Module = encoder.model.patch_embed.proj  # type: ignore[union-attr,assignment]
    projection.requires_grad_(False)
