"""From verdicts to at most one repair: when, and on which days.

Two causes: labels prove that the champion does harm, or it was made by a repair and there are now
labels to tell what is left to win back. The second asks at most once per doubling of the labels, a
handful of times a year, and the ladder's first rung ends it where nothing is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import registry
from ..config import Config, Deploy, Paths

WEEK = 7  # days of data between requests, where the cooldown does not hold
ENOUGH = 10  # times deploy.min_labels: labels that tell what a repair has left


@dataclass(frozen=True)
class Request:
    """A repair to start. ``key`` is the same for the same cause, so it starts once."""

    key: str
    dates: tuple[str, ...]
    reason: str

    @property
    def day(self) -> str:
        """The day that caused it: what ``last`` is for the next one."""
        return self.key.rpartition(":")[2]

    @property
    def repair_key(self) -> str:
        """The key as the name of the repair's folder."""
        return self.key.replace(":", "-")


def _began(changed: pd.DataFrame) -> str:
    """The day on which the change most likely began: evidence needs days to reach its threshold."""
    days = changed["date"].astype(str).tolist()
    for known, since in (("alarm", "since"), ("harm_since", "harm_since")):
        days += changed.loc[changed[known].notna(), since].dropna().astype(str).tolist()
    return min(days)


def _own(history: pd.DataFrame, champion: str) -> pd.DataFrame:
    """The champion's days on which the feed was sound."""
    sound = ~history["broken"].fillna(False).astype(bool)
    return history[(history["model"] == champion) & sound]


def _rested(day: str, last: str, days: int) -> bool:
    return not last or (pd.Timestamp(day) - pd.Timestamp(last)).days >= days


def decide(
    deploy: Deploy,
    history: pd.DataFrame,
    champion: str | None,
    last: str = "",
    cooldown: int | None = None,
) -> Request | None:
    """The repair that proven harm calls for, or None.

    Args:
        history: rows of ``monitor.history``.
        champion: id of the model in service; verdicts on others say nothing about it.
        last: day that caused the latest request, "" if there was none.
        cooldown: days that have to pass after it; None: ``deploy.cooldown_days``.

    Only harm calls for a repair: a change that does no harm needs none, and all days since the
    change began are taken along once harm is proven. After a request the cooldown has to pass, in
    days of data and not of wall clock, so that a failing repair cannot loop.
    """
    if champion is None or not len(history):
        return None
    own = _own(history, champion)
    harmed = own[own["verdict"] == "harm"]
    if not len(harmed):
        return None
    day = str(harmed["date"].max())
    if not _rested(day, last, deploy.cooldown_days if cooldown is None else cooldown):
        return None
    began = _began(own[own["verdict"].isin(["drift", "harm"])])
    dates = tuple(sorted(str(d) for d in own["date"] if began <= str(d) <= day))
    reason = str(harmed.loc[harmed["date"] == day, "reason"].iloc[0])
    return Request(f"{champion}:{day}", dates, reason)


def made_by(repair: Mapping[str, Any], champion: str) -> bool:
    """Whether a repair's decision brought this model into service, by itself or by the chain."""
    chain = repair["outcome"] == "full" and repair["champion"] != champion
    return bool(chain or repair.get("candidate") == champion)


def _fresh(repair: Mapping[str, Any]) -> int:
    """Labels of the days that a repair was for; those of earlier ones do not count."""
    counts = repair["counts"]
    both = counts["learn_labels"] + counts["judge"]
    return int(repair.get("loss", {}).get("labels", both))


def unfinished(
    deploy: Deploy,
    history: pd.DataFrame,
    champion: str | None,
    repairs: Sequence[Mapping[str, Any]],
    last: str = "",
) -> Request | None:
    """A second look at what a repair could not finish with the labels there were, or None.

    It comes when the champion's days have as many labels as the repair that made it had, or
    ``ENOUGH``, and again whenever they have doubled since the latest look at this champion; it
    is spared where the daily verdicts show no loss.

    Args:
        repairs: decisions of ``repair.history``, oldest first.
    """
    if champion is None or not len(history) or not repairs:
        return None
    latest, own = repairs[-1], _own(history, champion)
    own = own[own["labels"].fillna(0) > 0] if "labels" in own else own[:0]
    looked = latest["champion"] == champion
    if not len(own) or not (looked or made_by(latest, champion)) or "counts" not in latest:
        return None
    had = _fresh(latest)
    there, day = int(own["labels"].sum()), str(own["date"].max())
    need = 2 * had if looked else min(had, ENOUGH * deploy.min_labels)
    if there < max(deploy.min_labels, need) or not _rested(day, last, WEEK):
        return None
    if _lost(own, latest, champion) <= 0:
        return None
    reason = f"{there} labels have come since; the last look ({latest['key']}) had {had}."
    return Request(f"{champion}:{day}", tuple(sorted(own["date"].astype(str))), reason)


def _lost(own: pd.DataFrame, latest: Mapping[str, Any], champion: str) -> float:
    """The champion's loss on all its labels, or 1 where only a look can tell.

    Beside the old images: as the latest look at it measured them, or, if the whole chain made it,
    as its own reference has them. What a rung made is measured by no such reference.
    """
    loss = latest.get("loss", {})
    if loss.get("metric") != "accuracy" or latest.get("candidate") == champion:
        return 1.0
    looked = latest["champion"] == champion
    old = loss["reference"] if looked else own["reference"].iloc[-1]
    return float(old - np.average(own["accuracy"], weights=own["labels"]))


def looked_at(
    request: Request, history: pd.DataFrame, champion: str, repairs: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the ladder was climbed for proven harm with more than half of today's labels.

    It would most likely end as before, so the number of climbs grows with the logarithm of time.
    """
    own = (r for r in repairs if r["champion"] == champion and r["looks"] > 0)
    had = [_fresh(r) for r in own if "counts" in r and not r.get("finishes")]
    days = _own(history, champion)
    labels = days.loc[days["date"].astype(str).isin(request.dates), "labels"].fillna(0).sum()
    return bool(had) and bool(labels < 2 * had[-1])


def due(cfg: Config, paths: Paths, last: str = "") -> Request | None:
    """The request that the project's files call for now; ``last``: day of the latest one.

    A repair that could not begin, for want of labels, does not start the cooldown; one that
    found the loss not proven yet is asked for again after a week; one that found no better model,
    when labels have doubled.
    """
    from . import monitor, repair  # here: sensors import this file, and these import torch

    champion, cooldown = registry.champion(paths.registry), cfg.deploy.cooldown_days
    if last and champion:
        key = f"{champion}-{last}"
        said = repair.outcome(paths, key)
        if repair.waits(paths, key):
            last = ""
        elif said is not None and said["outcome"] == "nothing":
            cooldown = min(WEEK, cooldown)
    history = monitor.history(paths)
    found, done = decide(cfg.deploy, history, champion, last, cooldown), repair.history(paths)
    if found and champion and looked_at(found, history, champion, done):
        return None
    return found or unfinished(cfg.deploy, history, champion, done, last)
