"""Notices training that has gone wrong, and says which knob to turn.

Three signs, each over ``PATIENCE`` looks or steps in a row: gradients that are not finite;
features that no longer differ (or differ along one direction only); a loss that stays at the
value at which nothing is told apart. ``train`` then goes back to the last good checkpoint with
half the learning rate, or stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import dist

PATIENCE = 3
FLAT = 1e-3  # spread of features over their size: a random ViT has 0.05 and more
THIN = 1.2  # effective rank of centred features; one direction alone gives 1
NEAR = 2e-4  # relative distance of the loss from chance
CALM = 0.5  # share of the steps before the loss is judged: many methods start at chance
SMOOTH = 0.8  # how much of the measure of former looks stays


class Trouble(Exception):
    """Training has gone wrong: ``what`` was seen at a step, ``rule`` it breaks, the ``fix``."""

    def __init__(self, step: int, rule: str, fix: str) -> None:
        self.step, self.what, self.rule, self.fix = step, f"training at step {step}", rule, fix
        super().__init__(f"{self.what} {rule}; {fix}")


@torch.no_grad()
def spread(features: Tensor) -> tuple[float, float]:
    """Of (B, D): size of the centred features over that of all, and their effective rank.

    The rank is the exponential of the entropy of the normalised singular values, as RankMe
    (arXiv 2210.02885), of centred features. Means over ranks.
    """
    x = features.detach().float()
    centred = x - x.mean(0)
    relative = centred.norm() / x.norm().clamp_min(1e-12)
    values = torch.linalg.svdvals(centred)
    p = values / values.sum().clamp_min(1e-30)
    rank = torch.exp(-(p * p.clamp_min(1e-30).log()).sum())
    both = dist.mean(torch.stack([relative, rank]))
    return float(both[0]), float(both[1])


@dataclass
class Guard:
    """Counts bad signs; ``knob`` is the method's own advice, ``steps`` the length of training."""

    steps: int
    knob: str
    bad: int = 0  # steps in a row without a finite gradient
    flat: int = 0  # looks in a row
    chance: int = 0
    rank: float = 0.0  # smoothed effective rank of the features

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps, so that a resumed run decides alike."""
        return {"bad": self.bad, "flat": self.flat, "chance": self.chance, "rank": self.rank}

    def load(self, state: dict[str, float]) -> None:
        """Undo :meth:`state`."""
        self.bad, self.flat, self.chance = (int(state[k]) for k in ("bad", "flat", "chance"))
        self.rank = state["rank"]

    def measure(self, step: int) -> float | None:
        """How good the encoder is after ``step``, without labels: the larger the better.

        The effective rank of its features (RankMe, arXiv 2210.02885), smoothed over looks. Not
        the loss: temperatures, teachers and masks move while it is measured, and a collapsed
        encoder can have the lowest. None in the first half, where an encoder that has hardly
        been trained may have features of a higher rank than it ever has again.
        """
        return self.rank if self.rank and step >= CALM * self.steps else None

    @property
    def healthy(self) -> bool:
        """No sign of trouble in the last look."""
        return not (self.bad or self.flat or self.chance)

    def step(self, step: int, norm: float) -> None:
        """After each step, with its gradient norm.

        Raises:
            Trouble: not finite for the last ``PATIENCE`` steps.
        """
        self.bad = 0 if math.isfinite(norm) else self.bad + 1
        if self.bad >= PATIENCE:
            rule = f"had no finite gradient {PATIENCE} times in a row"
            fix = "lower pretrain.lr (or raise pretrain.warmup, or set pretrain.precision: fp32)"
            raise Trouble(step, rule, fix)

    def look(self, step: int, features: Tensor, loss: float, metrics: dict[str, Any]) -> None:
        """Every few steps.

        Raises:
            Trouble: collapsed, or the loss at chance, for the last ``PATIENCE`` looks.
        """
        relative, rank = spread(features)
        if math.isfinite(rank):
            self.rank = SMOOTH * self.rank + (1 - SMOOTH) * rank if self.rank else rank
        self.flat = self.flat + 1 if relative < FLAT or rank < THIN else 0
        if self.flat >= PATIENCE:
            rule = (
                f"has collapsed: features differ by {relative:.1e} of their size, "
                f"effective rank {rank:.2f}"
            )
            raise Trouble(step, rule, f"{self.knob}, or lower pretrain.lr")
        self.chance = self.chance + 1 if self._at_chance(step, loss, metrics) else 0
        if self.chance >= PATIENCE:
            rule = f"tells nothing apart: the loss stays at {loss:.3f}, its value by chance"
            if _one_prototype(metrics):
                rule = f"uses one prototype only (entropy {float(metrics['entropy']):.1e})"
            raise Trouble(step, rule, self.knob)

    def _at_chance(self, step: int, loss: float, metrics: dict[str, Any]) -> bool:
        if step < CALM * self.steps or "chance" not in metrics:
            return False
        chance = float(metrics["chance"])
        return abs(loss - chance) < NEAR * chance or _one_prototype(metrics)


def _one_prototype(metrics: dict[str, Any]) -> bool:
    return "entropy" in metrics and float(metrics["entropy"]) < NEAR * float(metrics["chance"])
