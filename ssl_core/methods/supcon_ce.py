"""From contrast to classification by degrees (arXiv 2103.14267; for bags, 2303.13405).

alpha * contrast + (1 - alpha) * cross-entropy, alpha from 1 to 0: first the representation, then
the classifier. The contrast is SupCon, or that with learned class prototypes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import dist
from ..errors import HeadwaterError
from ..heads import projector
from ..losses.cross_entropy import cross_entropy, prototype
from ..losses.supcon import supcon
from ..models import Encoder
from ..types import Task, View
from . import _temperature
from . import supcon as supcon_method
from ._labels import accuracy, need_classes
from ._monitor import alignment
from ._recipe import Pair
from ._temperature import Temperature

Curve = Literal["parabolic", "linear", "cosine", "step", "constant"]


class Config(Pair):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    temperature: Temperature = 0.1
    hidden: int = 512
    out: int = 128
    layers: int = 2
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    curve: Curve = "parabolic"
    switch: float = Field(default=0.5, ge=0, le=1)  # step: share of the steps with contrast only
    level: float = Field(default=0.5, ge=0, le=1)  # constant: alpha
    contrast: Literal["supcon", "prototype"] = "supcon"
    exclude_own: bool = False  # prototype: leave the own class out of the denominator
    # The paper draws a second, class-balanced batch for the classifier. Weighing the one batch by
    # inverse class frequency has the same expectation over the classes present, at half the cost.
    class_balanced: bool = True


# The curve is from memory. The paper's optimiser is unknown here: this is that of SupCon's code.
PAPER = supcon_method.PAPER | {"curve": "parabolic"}


def alpha(curve: Curve, done: float, switch: float = 0.5, level: float = 0.5) -> float:
    """Weight of the contrast after a share ``done`` of the steps: 1 at 0, 0 at 1.

    ``constant`` stays at ``level``; ``step`` falls at ``switch``.
    """
    done = min(max(done, 0.0), 1.0)
    if curve == "constant":
        return level
    if curve == "step":
        return 1.0 if done < switch else 0.0
    if curve == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done ** (2 if curve == "parabolic" else 1)


KNOB = "raise pretrain.options.level or change pretrain.options.curve"


class Method(nn.Module):
    """Encoder with a projector for the contrast and a linear classifier.

    Raises:
        HeadwaterError: no label is known, or a single class without its own.
    """

    wants = ("labels",)

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        classes = need_classes(task)
        if classes < 2 and cfg.exclude_own:
            raise HeadwaterError(
                "a single class",
                "leaves no other for the denominator",
                "set pretrain.options.exclude_own: false",
            )
        self.encoder = encoder
        self.projector = projector(encoder.embed_dim, cfg.hidden, cfg.out, cfg.layers)
        self.classifier = nn.Linear(encoder.embed_dim, classes)
        self.prototypes: nn.Parameter | None = None
        if cfg.contrast == "prototype":
            self.prototypes = nn.Parameter(torch.randn(classes, cfg.out))

    @property
    def views(self) -> list[View]:
        """Two views."""
        return self.cfg.pair(self.task.image_size)

    def forward(
        self, views: list[Tensor], step: int, labels: Tensor
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Two (B, C, S, S) and labels (B,), -1 for unknown -> loss and monitors.

        ``alpha``: weight of the contrast; ``accuracy``: of the classifier on this batch.
        """
        c = self.cfg
        t = _temperature.at(c.temperature, step, self.task)
        share = alpha(c.curve, step / self.task.steps, c.switch, c.level)
        features = self.encoder(torch.cat(views), need="pooled").pooled  # (2B, D)
        z, logits = self.projector(features), self.classifier(features)
        twice = labels.repeat(2)
        # A weight of 0 still leaves a zero gradient on every parameter, which DDP waits for.
        classified = cross_entropy(logits, twice, balanced=c.class_balanced)
        value = share * self._contrast(z, labels, t) + (1 - share) * classified
        one, two = z.chunk(2)
        return value, alignment(one, two) | {
            "alpha": share,
            "accuracy": accuracy(logits, twice),
            "temperature": t,
            "chance": self._chance(share, len(one)),
        }

    def _contrast(self, z: Tensor, labels: Tensor, t: float) -> Tensor:
        """Projections (2B, d) -> SupCon over all, or the prototype loss over labelled images."""
        if self.prototypes is None:
            return supcon(z.unflatten(0, (2, -1)), labels, t)
        return prototype(z, self.prototypes, labels.repeat(2), t, self.cfg.exclude_own)

    def _chance(self, share: float, batch: int) -> float:
        """The loss where all cosines and all logits are equal."""
        classes = self.task.classes
        among = 2 * batch * dist.world() - 1
        if self.prototypes is not None:
            among = classes - self.cfg.exclude_own
        return share * math.log(among) + (1 - share) * math.log(classes)

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""
