"""CLIP's recipe on two crops of an image: linear projector, crops only, learnt temperature.

CLIP (arXiv 2103.00020) has two modalities; what holds there need not hold here. A comparison
for MLP projectors and full augmentation, not a published recipe.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import dist
from ..losses.info_nce import clip
from ..models import Encoder
from ..types import Task, View
from ._monitor import alignment
from ._recipe import Recipe

LARGEST = 100.0  # of the scale 1/t


class Config(Recipe):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    temperature: float = Field(default=0.07, ge=1 / LARGEST)  # at first; it is learnt
    out: int = 128
    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area


PAPER = {"temperature": 0.07}
KNOB = "raise pretrain.options.temperature"


class Method(nn.Module):
    """Encoder, linear projector without bias, and the logarithm of the logits' scale."""

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        self.projector = nn.Linear(encoder.embed_dim, cfg.out, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / cfg.temperature)))

    @property
    def views(self) -> list[View]:
        """Two random square crops, nothing else."""
        return [View(self.task.image_size, self.cfg.scale, 2, ratio=(1.0, 1.0), flip=0.0)]

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors (see ``_monitor.alignment``)."""
        a, b = self.projector(self.encoder(torch.cat(views), need="pooled").pooled).chunk(
            2
        )  # (2B, D)
        scale = self.log_scale.exp()
        return clip(a, b, scale), alignment(a, b) | {
            "chance": math.log(len(a) * dist.world()),
            "temperature": 1 / scale.detach(),
        }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Clip the scale."""
        # The parameter, not its use: a clipped use would have no gradient and could not return.
        self.log_scale.clamp_(max=math.log(LARGEST))
