"""Rung 2: another temperature (arXiv 1706.04599). It changes confidence, never the class."""

from __future__ import annotations

from ..config import Config
from ._common import Answer, Candidate, Context, Skip, calibrated, short

JUDGED = True


def cost(ctx: Context, cfg: Config) -> float:
    """The fresh images once."""
    return float(len(ctx.fresh))


def propose(ctx: Context, cfg: Config) -> Answer:
    """The champion with the temperature that suits the fresh labels."""
    if cfg.repair.metric == "accuracy":
        return Skip("A temperature changes no answer, and what was lost is accuracy.")
    if lacking := short(ctx, cfg):
        return lacking
    pool, head = ctx.pool, ctx.champion.head
    rows = pool.rows(cfg.repair.mix)
    found = calibrated(head, pool.embeddings(ctx.features, rows[rows >= pool.old]))
    notes = {"temperature": found.temperature, "before": head.temperature}
    return Candidate(found, labels=ctx.labelled, notes=notes)
