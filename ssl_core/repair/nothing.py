"""Rung 0: is the loss proven on all fresh labels together? If not, nothing is done."""

from __future__ import annotations

from ..config import Config
from ._common import Answer, Context, Skip, Stop, say_loss

JUDGED = False


def cost(ctx: Context, cfg: Config) -> float:
    """Nothing beyond what the ladder has measured already."""
    return 0.0


def propose(ctx: Context, cfg: Config) -> Answer:
    """Stop unless the interval of the loss lies wholly above ``deploy.min_drop``.

    Where a repair is to be finished, harm was proven once, and cheap rungs are tried in any case.
    """
    if ctx.finishes:
        return Skip("A repair is to be finished: with more labels more may be won back.")
    limit = cfg.deploy.min_drop
    text = f"{say_loss(ctx, cfg)} (deploy.min_drop {limit:.1%})"
    if ctx.loss.high < -limit:
        return Skip(f"The loss is proven: {text}.")
    return Stop(f"The loss is not proven: {text}.")
