"""VICRegL (arXiv 2210.01571): VICReg on whole images and on cells that show the same place."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ..heads import projector
from ..losses import vicregl as loss
from ..models import Crops, Encoder
from ..types import Task, View
from ._monitor import alignment
from ._recipe import BYOL_COLOURS, MultiCrop
from .dino import by_size


class Config(MultiCrop):
    """Defaults for small images and data sets of thousands, with maps of about 4 x 4 cells."""

    lr: float = 4e-3
    alpha: float = Field(default=0.75, ge=0, le=1)  # weight of the whole images, the rest: cells
    matches: tuple[int, int] = (6, 2)  # of location, in both directions; a map may hold fewer
    all_features: bool = True  # matching by features keeps all cells, else ``matches``
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0)  # invariance, variance, covariance
    hidden: int = 1024
    out: int = 1024
    layers: int = 3
    local_hidden: int = 256
    local_out: int = 256
    local_layers: int = 3
    locals_: int = 0  # a small view of a small image has too few cells to match


# The authors' ConvNeXt runs (github.com/facebookresearch/VICRegL).
PAPER = BYOL_COLOURS | {
    "lr": 5e-4,
    "weight_decay": 0.05,
    "betas": (0.9, 0.999),
    "scale": (0.4, 1.0),
    "local_scale": (0.08, 0.4),
    "local_size": 96 / 224,
    "locals_": 6,
    "local_blur": 0.55,  # the mean: the authors alternate 1.0 and 0.1 (and solarise 0 and 0.2)
    "matches": (20, 4),
    "hidden": 8192,
    "out": 8192,
    "local_hidden": 512,
    "local_out": 512,
}
KNOB = "raise the second of pretrain.options.weights (variance)"


class Method(nn.Module):
    """Encoder with one expander for pooled vectors and one for cells."""

    wants = ("boxes",)

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        width = encoder.embed_dim
        # Without the last batch norm: it would fix the variance that the loss is to hold up.
        self.projector = projector(width, cfg.hidden, cfg.out, cfg.layers)[:-1]
        local = projector(width, cfg.local_hidden, cfg.local_out, cfg.local_layers)
        self.local_projector = local[:-1]

    @property
    def views(self) -> list[View]:
        """Two global views, then the local ones."""
        stride = self.encoder.stride if self.encoder.is_vit else 1
        return self.cfg.crops(self.task.image_size, stride)

    def forward(
        self, views: list[Tensor], step: int, boxes: list[Tensor]
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Views and where each was cut (B, 5) -> loss and monitors.

        ``global`` and ``local`` are the two parts of the loss.
        """
        c = self.cfg
        features: list[Tensor] = []
        maps: list[Tensor] = []
        places: list[Tensor] = []
        groups = by_size(views)
        outs = self.encoder.many([Crops(torch.cat(group)) for group in groups])
        for group, out in zip(groups, outs, strict=True):
            features.append(out.pooled)
            cells, grid = self._cells(out.patch, len(group))
            at = boxes[len(maps) : len(maps) + len(group)]
            maps += cells
            places += [loss.cells(box, grid) for box in at]
        z = self.projector(torch.cat(features)).chunk(len(views))  # V x (B, d)
        whole = loss.pooled(z, c.weights)
        parts = loss.maps(maps, places, c.matches, c.all_features, c.weights)
        shown = {"global": whole.detach(), "local": parts.detach()}
        return c.alpha * whole + (1 - c.alpha) * parts, alignment(z[0], z[1]) | shown

    def _cells(self, patch: Tensor, views: int) -> tuple[list[Tensor], tuple[int, int]]:
        """Map (V*B, h, w, D) -> projected cells, V x (B, h*w, d), and the grid."""
        h, w = patch.shape[1:3]
        z = self.local_projector(patch.flatten(0, 2))  # (V*B*h*w, d)
        return list(z.unflatten(0, (views, -1, h * w))), (h, w)

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
