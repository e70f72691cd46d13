"""VICReg (arXiv 2105.04906): partners agree, dimensions vary, and no two tell the same."""

from __future__ import annotations

from torch import Tensor, nn

from ..heads import projector
from ..losses.vicreg import vicreg
from ..models import Encoder
from ..types import Task, View
from ._monitor import alignment
from ._recipe import BYOL_COLOURS, Pair


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    hidden: int = 512
    out: int = 512
    layers: int = 3
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0


PAPER = BYOL_COLOURS | {
    "optimizer": "lars",
    "lr": 0.2,
    "weight_decay": 1e-6,
    "betas": (0.9, 0.999),
    "hidden": 8192,
    "out": 8192,
    "scale": (0.08, 1.0),
}
KNOB = "raise pretrain.options.variance"


class Method(nn.Module):
    """Encoder and expander: an MLP whose last layer is linear, without bias."""

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        # Without the last batch norm: it would fix the variance that the loss is to hold up.
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, cfg.layers)[:-1]

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss, its three terms without weights, and alignment."""
        c = self.cfg
        a, b = (self.projector(self.encoder(v, need="pooled").pooled) for v in views)  # (B, out)
        loss, terms = vicreg(a, b, (c.invariance, c.variance, c.covariance))
        return loss, alignment(a, b) | terms

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
