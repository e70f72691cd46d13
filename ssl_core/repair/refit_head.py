"""Rung 3: a new linear head on the champion's features of old and fresh labelled images."""

from __future__ import annotations

from ..config import Config
from ._common import Answer, Candidate, Context, short

JUDGED = True


def cost(ctx: Context, cfg: Config) -> float:
    """All images once."""
    return float(len(ctx.pool))


def propose(ctx: Context, cfg: Config) -> Answer:
    """The encoder stays to the bit; new classes join the head."""
    if lacking := short(ctx, cfg):
        return lacking
    head = ctx.refitted(cfg)
    added = sorted(set(head.classes) - set(ctx.champion.head.classes))
    notes = {"classes": len(head.classes), "new_classes": added[:20]}
    return Candidate(head, labels=ctx.labelled, notes=notes)
