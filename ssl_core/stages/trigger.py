"""From verdicts to at most one retraining: when, and on which days."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..config import Deploy


@dataclass(frozen=True)
class Request:
    """A retraining to start. ``key`` is the same for the same cause, so it starts once."""

    key: str
    dates: tuple[str, ...]
    reason: str


def _began(changed: pd.DataFrame) -> str:
    """The day on which the change most likely began: evidence needs days to reach its threshold."""
    days = changed["date"].astype(str).tolist()
    for known, since in (("alarm", "since"), ("harm_since", "harm_since")):
        days += changed.loc[changed[known].notna(), since].dropna().astype(str).tolist()
    return min(days)


def decide(
    deploy: Deploy, history: pd.DataFrame, champion: str | None, last: str = ""
) -> Request | None:
    """The retraining that the newest verdicts call for, or None.

    Args:
        history: rows of ``monitor.history``.
        champion: id of the model in service; verdicts on others say nothing about it.
        last: day that caused the latest request, "" if there was none.

    Only harm calls for retraining: a change that does no harm needs none, and all days since the
    change began are taken along once harm is proven. After a request the cooldown has to pass, in
    days of data and not of wall clock, so that a failing retraining cannot loop.
    """
    if champion is None or not len(history):
        return None
    own = history[(history["model"] == champion) & ~history["broken"].fillna(False).astype(bool)]
    harmed = own[own["verdict"] == "harm"]
    if not len(harmed):
        return None
    day = str(harmed["date"].max())
    if last and (pd.Timestamp(day) - pd.Timestamp(last)).days < deploy.cooldown_days:
        return None
    began = _began(own[own["verdict"].isin(["drift", "harm"])])
    dates = tuple(sorted(str(d) for d in own["date"] if began <= str(d) <= day))
    reason = str(harmed.loc[harmed["date"] == day, "reason"].iloc[0])
    return Request(f"{champion}:{day}", dates, reason)
