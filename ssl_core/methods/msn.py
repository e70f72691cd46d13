"""MSN (arXiv 2204.07141): views with dropped patches choose the prototypes of a whole view."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import dist
from ..errors import HeadwaterError
from ..heads import projector
from ..losses import msn as loss
from ..losses.dino import entropy
from ..models import Crops, Encoder
from ..types import Task, View
from . import mae
from ._recipe import BYOL_COLOURS, MultiCrop
from ._teacher import Taught, first_momentum, follow, frozen_copy
from .dino import by_size


class Config(MultiCrop):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    prototypes: int = 32
    hidden: int = 512
    out: int = 128
    drop: float = 0.15  # share of an anchor's patches that is dropped; ViTs only
    temperature: float = 0.1
    sharpen: float = 0.25  # temperature on top, for targets
    iterations: int = 3  # of Sinkhorn-Knopp on targets; 0: none
    weight: float = 1.0  # of the regulariser
    # What the anchors' mean assignment should be: the exponent of a power law (0: uniform), or
    # one mass per prototype.
    prior: float | tuple[float, ...] = 0.0
    direction: loss.Direction = "mean_to_prior"
    # Of the teacher at first, None: by the steps; 1 at the end, in a straight line.
    momentum: float | None = None
    scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.1, 0.4)


# The ViT-S run.
PAPER = BYOL_COLOURS | {
    "lr": 1e-3,  # for the paper's batch; per how many images is not known
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "betas": (0.9, 0.999),  # from memory
    "prototypes": 1024,
    "hidden": 2048,  # from memory
    "out": 256,
    "momentum": 0.996,
    "local_size": 96 / 224,
    "locals_": 10,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "blur": (0.5, 0.5),
    "local_blur": 0.5,
    "solarise": (0.0, 0.0),
}

KNOB = "raise pretrain.options.weight (of the regulariser) or momentum, or set iterations: 3"


class Method(Taught):
    """Student and momentum teacher, each encoder + projector, and prototypes that both use.

    Raises:
        HeadwaterError: a prior that does not give each prototype a positive mass.
    """

    prior: Tensor

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, 3, last_norm=False)
        self.prototypes = nn.Parameter(torch.randn(cfg.prototypes, cfg.out))
        self.teacher = frozen_copy(self.encoder)
        self.teacher_projector = frozen_copy(self.projector)
        self.register_buffer("prior", _prior(cfg), persistent=False)
        self.train()

    @property
    def views(self) -> list[View]:
        """The target, a large anchor, then the small ones."""
        stride = self.encoder.stride if self.encoder.is_vit else 1
        return self.cfg.crops(self.task.image_size, stride)

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Views as in ``views`` -> loss and monitors.

        ``entropy``: of the targets' mean over all images, not of each target, which may become
        sure; it falls to 0 when one prototype takes all.
        """
        c, batch = self.cfg, len(views[0])
        with torch.no_grad():
            z = self.teacher_projector(self.teacher(views[0], need="pooled").pooled)
            target = loss.targets(
                z, self.prototypes, c.temperature, c.sharpen, c.iterations, self.prior
            )
        outs = self.encoder.many([self._part(torch.cat(g)) for g in by_size(views[1:])])
        features = torch.cat([out.pooled for out in outs])  # (A*B, D)
        anchors = self.projector(features).unflatten(0, (-1, batch))  # (A*B, d) -> (A, B, d)
        value = loss.msn(
            anchors, target, self.prototypes, c.temperature, c.weight, self.prior, c.direction
        )
        uniform = torch.full_like(self.prior, 1 / c.prototypes)
        far = loss.divergence(uniform, self.prior, c.direction)
        return value, {
            "entropy": entropy(dist.mean(target.mean(0))),
            "chance": math.log(c.prototypes) + c.weight * far,
        }

    def _part(self, x: Tensor) -> Crops:
        """Views (B, C, S, S), with a random part of the patches if the encoder can."""
        if not self.encoder.is_vit or not self.cfg.drop:
            return Crops(x, need="pooled")
        side = x.shape[-1] // self.encoder.stride
        kept = max(1, int(side * side * (1 - self.cfg.drop)))
        keep, _ = mae.random_mask(len(x), side, kept, x.device)
        return Crops(x, keep, need="pooled")

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher."""
        start = first_momentum(self.cfg.momentum, self.task.steps)
        m = start + (1 - start) * min(step / self.task.steps, 1.0)
        follow(self.teacher, self.encoder, m)
        follow(self.teacher_projector, self.projector, m)


def _prior(cfg: Config) -> Tensor:
    if not isinstance(cfg.prior, tuple):
        return loss.power_law(cfg.prototypes, cfg.prior).float()
    if len(cfg.prior) != cfg.prototypes or min(cfg.prior) <= 0:
        raise HeadwaterError(
            f"prior of {len(cfg.prior)} masses",
            f"does not give each of {cfg.prototypes} prototypes a positive mass",
            "set pretrain.options.prior to one number (the exponent of a power law), or mend it",
        )
    mass = torch.tensor(cfg.prior)
    return mass / mass.sum()
