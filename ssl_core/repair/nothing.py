"""Rung 0: is the loss proven on all fresh labels together? If not, nothing is done."""

from __future__ import annotations

from ..config import Config
from ._common import Answer, Context, Skip, Stop

JUDGED = False


def cost(ctx: Context, cfg: Config) -> float:
    """Nothing beyond what the ladder has measured already."""
    return 0.0


def propose(ctx: Context, cfg: Config) -> Answer:
    """Stop unless the interval of the loss lies wholly above ``deploy.min_drop``.

    Where a repair is to be finished, harm was proven once: the first look goes on if more than
    ``promote.margin``, which the gate allows, seems to be lost, later ones if that is proven.
    """
    found, limit, rule = ctx.loss, cfg.deploy.min_drop, "deploy.min_drop"
    if ctx.finishes:
        limit, rule = cfg.promote.margin, "to finish a repair, promote.margin"
    text = (
        f"{cfg.repair.metric} is {found.now:.1%} on {found.labels} fresh labels, "
        f"{found.reference:.1%} on the old held-out images; the interval of the loss begins at "
        f"{-found.high:.1%} ({rule} {limit:.1%})"
    )
    if found.high < -limit:
        return Skip(f"The loss is proven: {text}.")
    if ctx.finishes == "first" and found.lost > limit:
        return Skip(f"A repair is to be finished, with as many labels again: {text}.")
    return Stop(f"The loss is not proven: {text}.")
