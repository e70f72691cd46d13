"""Proof that one model is better than another: paired intervals over groups.

Promoted is what is *proven* better (paired bootstrap over groups, lower end above zero) on all
test images, on a source the champion never trained on, or on images of deployment: the slices that
retraining is to mend.
Each such look can err, so the level is shared among them (Bonferroni). Refused is what is
*proven* worse on a source the champion knew, by more than the margin at the point estimate. To
prove the opposite, that the loss is below the margin, would take thousands of images per source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .config import Promote
from .evaluate import _common
from .shards import DEPLOYMENT

LEAST = 20  # groups below which a bootstrap interval proves nothing
TAIL = 20  # draws that lie beyond an interval's end at least: else the end is noise
Slice = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """The same held-out images named by both sides.

    ``frame`` has sha256, group, source, correct and ``other`` (whether the opponent is right).
    """

    frame: pd.DataFrame
    opponent: str  # in words
    known: frozenset[str] | None = None  # sources the champion trained on; None: no champion
    excluded: int = 0  # images the champion trained on


def compare(frame: pd.DataFrame, cfg: Promote, level: float, seed: int) -> Slice:
    """Mean score of the challenger less the opponent's on the same images.

    ``frame`` has group, and ``correct`` and ``other``: right or wrong, or scores in [0, 1].
    """
    gain = frame["correct"].astype(float) - frame["other"].astype(float)
    groups = frame["group"].to_numpy(str)
    draws = max(cfg.bootstrap, round(2 * TAIL / (1 - level)))
    value, low, high = _common.difference(gain, groups, draws, level, seed)
    alone = not np.isfinite([low, high]).all()  # one group: no interval, and no NaN in JSON
    return {
        "difference": value,
        "low": None if alone else low,
        "high": None if alone else high,
        "n": len(frame),
        "groups": int(frame["group"].nunique()),
        "level": level,
        "candidate": float(frame["correct"].mean()),
        "opponent": float(frame["other"].mean()),
    }


def compare_all(trial: Trial, cfg: Promote, seed: int) -> tuple[Slice, dict[str, Slice]]:
    """The whole test split, and each source.

    ``new`` marks sources the champion never knew, ``gain`` those on which a gain is enough.
    """
    sources = sorted(trial.frame["source"].unique())
    new = [s for s in sources if trial.known is not None and s not in trial.known]
    enough = {*new, DEPLOYMENT} & set(sources) if trial.known is not None else set()
    shared = 1 - (1 - cfg.level) / (1 + len(enough))  # Bonferroni over the looks at a gain
    slices = {}
    for name in sources:
        part = trial.frame[trial.frame["source"] == name]
        found = compare(part, cfg, shared if name in enough else cfg.level, seed)
        slices[f"source:{name}"] = {**found, "new": name in new, "gain": name in enough}
    return compare(trial.frame, cfg, shared, seed), slices


def better(found: Slice) -> bool:
    """Proven better."""
    return found["low"] is not None and found["low"] > 0 and found["groups"] >= LEAST


def worse(found: Slice, margin: float) -> bool:
    """Proven worse, and by more than the margin at the point estimate."""
    proven = found["high"] is not None and found["high"] < 0
    return bool(proven and found["difference"] < -margin)


def not_inferior(found: Slice, margin: float) -> bool:
    """Proven to lose less than the margin."""
    return found["low"] is not None and found["low"] > -margin and found["groups"] >= LEAST


def say(found: Slice) -> str:
    """The difference and its interval in words."""
    if found["low"] is None:
        return f"{100 * found['difference']:+.1f} points on {found['n']} images of one group"
    return (
        f"{100 * found['difference']:+.1f} points, {100 * found['level']:.4g}% interval "
        f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}, {found['n']} images in "
        f"{found['groups']} groups"
    )


def judge(trial: Trial, whole: Slice, slices: dict[str, Slice], margin: float) -> tuple[bool, str]:
    """The rule, and a sentence that gives the numbers it rests on."""
    places = {"all test images": whole} | {
        f"{k.partition(':')[2]}{', new to the champion' * s['new']}": s
        for k, s in slices.items()
        if s["gain"]
    }
    gains = [f"{name} ({say(s)})" for name, s in places.items() if better(s)]
    harmed = [
        f"{k.partition(':')[2]} ({say(s)})"
        for k, s in slices.items()
        if trial.known is not None and not s["new"] and worse(s, margin)
    ]
    note = f" Left out: {trial.excluded} test images the champion trained on." * bool(
        trial.excluded
    )
    if not gains:
        return False, f"Not proven better than {trial.opponent}: {say(whole)}.{note}"
    gain = f"Proven better than {trial.opponent} on {' and on '.join(gains)}"
    if harmed:
        limit = f"worse by more than {100 * margin:g} points on {' and on '.join(harmed)}"
        return False, f"{gain}, but {limit}.{note}"
    return (
        True,
        f"{gain}; not proven worse on any known source.{note}"
        if trial.known is not None
        else f"{gain}.",
    )
