"""SimCLR (arXiv 2002.05709): agree on two views of an image against all others in the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Section
from ..heads import projector
from ..losses.nt_xent import nt_xent
from ..models import Encoder
from ..types import View


class Config(Section):
    """Defaults for small images and data sets of thousands."""

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    temperature: float = 0.2
    hidden: int = 512
    out: int = 128
    layers: int = 2
    # Views: share of the area, (brightness, contrast, saturation, hue), chances.
    scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey: float = 0.2
    flip: float = 0.5
    blur: float = 0.0
    solarise: float = 0.0


class Method(nn.Module):
    """Encoder, MLP projector and NT-Xent."""

    def __init__(self, encoder: Encoder, cfg: Config, image_size: int, steps: int) -> None:
        super().__init__()
        self.cfg, self.image_size = cfg, image_size
        self.encoder = encoder
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, cfg.layers)

    @property
    def views(self) -> list[View]:
        """Two views of one recipe."""
        c = self.cfg
        return [
            View(
                self.image_size,
                c.scale,
                count=2,
                flip=c.flip,
                jitter=c.jitter,
                jitter_p=c.jitter_p,
                grey=c.grey,
                blur=c.blur,
                solarise=c.solarise,
            )
        ]

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) -> loss and monitors.

        ``positive``: mean cosine of partners. ``std``: spread of the unit projections times
        sqrt(d); 1 when isotropic, 0 when collapsed.
        """
        features = self.encoder(torch.cat(views)).pooled  # (2B, D)
        a, b = self.projector(features).chunk(2)
        loss = nt_xent(a, b, self.cfg.temperature)
        with torch.no_grad():
            unit = F.normalize(torch.cat([a, b]).float(), dim=1)
            positive = (unit[: len(a)] * unit[len(a) :]).sum(1).mean()
            std = unit.std(0).mean() * unit.shape[1] ** 0.5
        return loss, {"positive": positive, "std": std}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
