"""Rung 1: a broken feed is for people to mend. Training on it would teach the fault."""

from __future__ import annotations

from ..config import Config
from ._common import Answer, Context, Skip, Stop

JUDGED = False


def cost(ctx: Context, cfg: Config) -> float:
    """It reads what monitoring wrote."""
    return 0.0


def propose(ctx: Context, cfg: Config) -> Answer:
    """Stop if monitoring calls the input of any of the days broken."""
    broken = [day for day in ctx.feed if day.get("broken")]
    if not broken:
        return Skip("The input of these days is sound: readable, distinct images.")
    days = "; ".join(
        f"{d['date']}: {d['rejected']} of {d['images']} inputs unreadable, {d['distinct']} distinct"
        for d in broken
    )
    return Stop(f"Mend the feed first ({days}), then predict and monitor these days again.")
