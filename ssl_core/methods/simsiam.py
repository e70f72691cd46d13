"""SimSiam (arXiv 2011.10566): predict the other view's projection, which gets no gradient."""

from __future__ import annotations

from torch import Tensor, nn

from ..heads import projector
from ..losses.negative_cosine import negative_cosine
from ..models import Encoder
from ..types import Task, View
from ._monitor import alignment
from ._recipe import Pair


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    hidden: int = 256
    out: int = 128  # wider ones kept the encoder from learning in short runs (LOG.md)
    bottleneck: int = 64  # of the predictor
    scale: tuple[float, float] = (0.4, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)


# The optimiser is from memory. There, the predictor's learning rate does not decay.
PAPER = {
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 1e-4,
    "betas": (0.9, 0.999),
    "hidden": 2048,
    "out": 2048,
    "bottleneck": 512,
    "scale": (0.2, 1.0),
    "blur": (0.5, 0.5),
}
KNOB = "narrow pretrain.options.bottleneck"


class Method(nn.Module):
    """Encoder, projector that ends with a batch norm, and predictor with a bottleneck."""

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, 3)
        self.predictor = projector(cfg.out, cfg.bottleneck, cfg.out, last_norm=False)

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss in [-1, 1] and monitors (see ``_monitor.alignment``).

        The loss is -1 when all collapse to one point: only ``std`` of the projections tells.
        """
        z1, z2 = (self.projector(self.encoder(v, need="pooled").pooled) for v in views)  # (B, out)
        loss = negative_cosine(self.predictor(z1), z2) + negative_cosine(self.predictor(z2), z1)
        return loss / 2, alignment(z1, z2)

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
