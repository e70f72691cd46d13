"""DINO (arXiv 2104.14294): a student matches a momentum teacher's softmax over prototypes.

The teacher sees the two global crops only, the student all crops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..heads import PrototypeHead
from ..losses import dino as loss
from ..models import Crops, Encoder
from ..types import Task, View
from ._recipe import BYOL_COLOURS, MultiCrop
from ._teacher import Taught, follow, frozen_copy, momentum

# A slower teacher than this kept the targets uniform on small sets (LOG.md).
MEMORY = 0.05


class Config(MultiCrop):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    prototypes: int = 64
    hidden: int = 512
    bottleneck: int = 128
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.04)  # at first, after warm-up
    warm: float = 0.3  # share of steps in which the teacher's temperature rises
    freeze: float = 0.05  # share of steps in which the prototypes stand still
    momentum: float | None = None  # of the teacher at first, None: by the steps; 1 at the end
    centre_momentum: float = 0.9


PAPER = BYOL_COLOURS | {
    "lr": 5e-4,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "betas": (0.9, 0.999),
    "prototypes": 65536,
    "hidden": 2048,
    "bottleneck": 256,
    "teacher_temperature": (0.04, 0.07),
    "momentum": 0.996,
    "scale": (0.4, 1.0),
    "local_scale": (0.05, 0.4),
    "local_size": 96 / 224,
    "locals_": 8,
    "local_blur": 0.5,
}
KNOB = (
    "raise pretrain.options.momentum, lower pretrain.options.teacher_temperature against "
    "a uniform answer, or centre_momentum against a single prototype"
)


class Method(Taught):
    """Student and teacher, each encoder + prototype head."""

    centre: Tensor

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.encoder = encoder
        self.head = PrototypeHead(encoder.embed_dim, cfg.hidden, cfg.bottleneck, cfg.prototypes)
        self.teacher, self.teacher_head = frozen_copy(self.encoder), frozen_copy(self.head)
        self.register_buffer("centre", torch.zeros(cfg.prototypes))
        self._seen: Tensor | None = None  # this step's mean of the teacher's logits
        self.train()

    @property
    def views(self) -> list[View]:
        """Two global views, then the local ones."""
        stride = self.encoder.stride if self.encoder.is_vit else 1
        return self.cfg.crops(self.task.image_size, stride)

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Views as in ``views`` -> loss and monitors.

        ``entropy`` of the targets falls to 0 when one prototype takes all; ``kl`` falls to 0
        with entropy log K when all collapse to uniform.
        """
        c, batch = self.cfg, len(views[0])
        warm = loss.warm_temperature(step, round(c.warm * self.task.steps), *c.teacher_temperature)
        with torch.no_grad():
            logits = self.teacher_head(self.teacher(torch.cat(views[:2]), need="pooled").pooled)
            logits = logits.unflatten(0, (2, batch))  # (2B, K) -> (2, B, K)
            target = loss.targets(logits, self.centre, warm)
            self._seen = loss.batch_centre(logits)
        outs = self.encoder.many([Crops(torch.cat(g), need="pooled") for g in by_size(views)])
        features = torch.cat([out.pooled for out in outs])  # (V*B, D)
        student = self.head(features, frozen=step < c.freeze * self.task.steps)
        student = student.unflatten(0, (len(views), batch))  # (V*B, K) -> (V, B, K)
        value = loss.dino(student, target, c.student_temperature)
        spread = loss.entropy(target)
        return value, {
            "entropy": spread,
            "kl": value.detach() - spread,
            "temperature": warm,
            "chance": math.log(c.prototypes),
        }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher and the centre."""
        m = momentum(step, self.task.steps, self.cfg.momentum, MEMORY)
        follow(self.teacher, self.encoder, m)
        follow(self.teacher_head, self.head, m)
        if self._seen is not None:
            # Here, not in forward: a step that the loop rejects as non-finite moves nothing.
            self.centre.lerp_(self._seen.to(self.centre), 1 - self.cfg.centre_momentum)
            self._seen = None


def by_size(views: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive views of equal shape, for one pass through the encoder each."""
    groups: list[list[Tensor]] = []
    for view in views:
        if groups and groups[-1][0].shape == view.shape:
            groups[-1].append(view)
        else:
            groups.append([view])
    return groups
