"""The last rung: the whole chain with the fresh images. It is asked for, not run here."""

from __future__ import annotations

from ..config import Config
from ._common import TRAIN, Answer, Ask, Context, untrainable

JUDGED = False
VIEWS = 2


def cost(ctx: Context, cfg: Config) -> float:
    """Pretraining on old and fresh images, and features of all."""
    crop = (cfg.pretrain.crop_size / ctx.pool.side) ** 2
    return len(ctx.pool) * (1 + TRAIN * VIEWS * crop * cfg.pretrain.epochs)


def propose(ctx: Context, cfg: Config) -> Answer:
    """Ask for job ``retrain``; its stage promote is the gate.

    Where harm is proven, few labels are no reason against it; to finish a repair they are.
    """
    if ctx.finishes and (lacking := untrainable(ctx, cfg)):
        return lacking
    return Ask("No cheaper rung passed: the whole chain is asked for, with the fresh images.")
