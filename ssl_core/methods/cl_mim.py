"""Contrast and masked image modelling on one encoder (arXiv 2305.00729).

(1 - weight) * SimMIM + weight * MoCo v3. Contrast shapes the late layers, masking the early ones.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..models import Encoder
from ..types import Task
from . import moco_v3
from .simmim import Pixels


class Config(moco_v3.Config):
    """Defaults for small images and data sets of thousands."""

    weight: float = Field(default=0.2, ge=0, le=1)  # of the contrast
    mask_patch: int | None = None  # side of a hidden square in pixels; None: the patch size
    ratio: float = 0.6  # share of squares hidden


PAPER = moco_v3.PAPER | {
    "weight": 0.2,  # from memory
    "mask_patch": 32,
    "freeze_patch": False,  # the masked pass has to learn it
}

KNOB = moco_v3.KNOB


class Method(moco_v3.Method):
    """MoCo v3 on two whole views, and SimMIM on the first one masked; separate heads.

    Images' ``weights`` act on the contrast only.

    Raises:
        HeadwaterError: as ``simmim.Pixels``.
    """

    cfg: Config

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__(encoder, cfg, task)
        self.pixels = Pixels(encoder, task.image_size, cfg.mask_patch, cfg.ratio)

    def forward(
        self, views: list[Tensor], step: int, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors: ``contrast`` and ``pixels`` are the two parts.

        A part of weight 0 gives its head a zero gradient.
        """
        share = self.cfg.weight
        masked, _ = self.pixels(self.encoder, views[0])
        contrast, shown = super().forward(views, step, weights)
        del shown["chance"]  # of the contrast alone
        parts = {"contrast": contrast.detach(), "pixels": masked.detach()}
        return (1 - share) * masked + share * contrast, shown | parts
