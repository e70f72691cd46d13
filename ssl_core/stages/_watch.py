"""The watch over one model: every day's scores, and what all of them together say.

The state after a day is a pure function of the model's reference, of the prediction logs of its
days up to that day, and of the settings. It is computed from the first day on, whatever order days
come in; a key that names all of this makes what was computed before usable again
(``runs/looks``: it may be deleted at any time).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date as Date
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .. import alarm, plugins
from ..artifacts import read_json, sha256_file, sha256_json
from ..config import Config, Deploy, Paths
from ..drift._common import TooFew
from ..errors import HeadwaterError
from ._days import Day, partition, read_reference, reference_file, served_by
from ._memo import recall
from ._pool import Batch, Pair, draw, of_day, of_reference

LEAST = 8  # units below which no detector is asked
SETTINGS = ("detectors", "alpha", "permutations", "unit", "season", "pause")


@dataclass(frozen=True)
class Look:
    """One day. ``skipped``: why a detector was not asked, by name. ``key``: all it depends on."""

    date: str
    key: str
    scores: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    state: alarm.State

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.__dict__, "state": self.state.plain()}


def stratum(deploy: Deploy, date: str) -> str:
    """The season a day is compared within; "" where there are none."""
    day = Date.fromisoformat(date)
    names = {"": "", "weekday": f"weekday {day.isoweekday()}", "month": f"month {day.month}"}
    return names[deploy.season]


def paused(deploy: Deploy, date: str) -> bool:
    """Whether a declared period covers the day.

    Raises:
        HeadwaterError: an entry of deploy.pause is no day or period.
    """
    for entry in deploy.pause:
        start, _, end = entry.partition("..")
        shaped = re.fullmatch(r"\d{4}-\d\d-\d\d(\.\.\d{4}-\d\d-\d\d)?", entry)
        if not shaped or (end and end < start):
            rule = "is no day or period"
            raise HeadwaterError(f"deploy.pause '{entry}'", rule, "e.g. 2026-12-20..2027-01-06")
        if start <= date <= (end or start):
            return True
    return False


def stream(seed: int, date: str, name: str) -> np.random.Generator:
    """Random numbers of one purpose on one day."""
    digest = hashlib.sha256(f"{seed}:{date}:{name}".encode()).hexdigest()
    return np.random.default_rng(int(digest[:16], 16))


# ---- one day -----------------------------------------------------------------------------------


def detect(
    cfg: Config, reference: pd.DataFrame, past: list[Day], day: Day
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Every detector's score of a day against the past, and why some have none."""
    scores: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name in cfg.deploy.detectors:
        module = plugins.load("drift", name)
        try:
            pair = _pair(cfg, module.SEES, reference, past, day)
            groups = (pair.past_units, pair.now_units)
            alone = all(len(set(g)) == len(g) for g in groups)
            rng, count = stream(cfg.seed, day.date, name), cfg.deploy.permutations
            found = module.score(pair.past, pair.now, rng, count, None if alone else groups)
        except TooFew as error:
            skipped[name] = f"{error.value} {error.rule}"
            continue
        scores[name] = {
            "statistic": found.statistic,
            "p_value": found.p_value,
            "e_value": float(np.exp(alarm.bets(found.p_value)).mean()),
            "n": found.n,
            "details": found.details,
        }
    return scores, skipped


def _pair(cfg: Config, sees: str, reference: pd.DataFrame, past: list[Day], day: Day) -> Pair:
    """Values of past and day. All detectors that see the same are given the same rows."""
    unit = cfg.deploy.unit
    now = of_day(day, sees, unit)
    if now is None:
        raise TooFew("the prediction log", f"has no columns of {sees}", "predict this day again")
    count = len(now.units) if unit == "day" else len(np.unique(now.units))
    if count < LEAST:
        raise TooFew(f"{count} images or groups", f"are too few: {LEAST} are needed", "wait")
    plain = unit == "image" and not cfg.deploy.season
    first = [of_reference(reference, sees)] if plain else []
    found: list[Batch | None] = [*first, *(of_day(d, sees, unit) for d in past)]
    batches = [b for b in found if b is not None]
    return draw(batches, now, unit, stream(cfg.seed, day.date, f"pool:{sees}"))


# ---- all days ----------------------------------------------------------------------------------


def _look(
    cfg: Config, reference: pd.DataFrame, past: list[Day], day: Day, key: str, state: alarm.State
) -> dict[str, Any]:
    """A day's look as plain values, given the state after the day before."""
    own = stratum(cfg.deploy, day.date)
    if paused(cfg.deploy, day.date):
        why = dict.fromkeys(cfg.deploy.detectors, "the day lies in a declared pause")
        return Look(day.date, key, {}, why, state).plain()
    same = [d for d in past if stratum(cfg.deploy, d.date) == own]
    scores, skipped = detect(cfg, reference, same, day)
    p = {name: s["p_value"] for name, s in scores.items()}
    count = max(1, len(cfg.deploy.detectors))
    after = alarm.step(state, day.date, p, cfg.deploy.alpha, count, own)
    return Look(day.date, key, scores, skipped, after).plain()


def keys(cfg: Config, paths: Paths, model: str, days: list[Day]) -> list[str]:
    """For each day a name of all that its state depends on."""
    settings = {k: v for k, v in cfg.section("deploy").items() if k in SETTINGS}
    file = reference_file(paths, model)
    found, last = [], sha256_json([settings, cfg.seed, model, sha256_file(file)])
    for day in days:
        last = sha256_json([last, day.date, day.digest])
        found.append(last)
    return found


def looks(cfg: Config, paths: Paths, model: str, until: str) -> Iterator[Look]:
    """Every day of the model's watch up to ``until``, in order.

    A day under alarm is not added to the past: later days are compared with what was normal
    before.

    Raises:
        HeadwaterError: unknown model, or a log that cannot be used.
    """
    days = [d for d in served_by(paths, model) if d.date <= until]
    reference = read_reference(paths, model)
    state = alarm.State()
    past: list[Day] = []
    for day, key in zip(days, keys(cfg, paths, model, days), strict=True):
        make = partial(_look, cfg, reference, past, day, key, state)
        plain = recall(paths.runs / "looks", key, make)
        look = Look(**{**plain, "state": alarm.restore(plain["state"])})
        state = look.state
        if not state.alarm and not paused(cfg.deploy, day.date):
            past.append(day)
        yield look


def last_look(cfg: Config, paths: Paths, model: str, date: str) -> Look:
    """The look of one day that the model served.

    Raises:
        HeadwaterError: unknown model, or a log that cannot be used.
    """
    *_, found = looks(cfg, paths, model, date)
    return found


def stale(cfg: Config, paths: Paths, model: str, after: str) -> list[str]:
    """Later days whose written verdict rests on other earlier days than there are now."""
    days = served_by(paths, model)
    found = []
    for day, key in zip(days, keys(cfg, paths, model, days), strict=True):
        file = partition(paths.monitor, day.date) / "verdict.json"
        if day.date > after and file.exists():
            known = (read_json(file).get("evidence") or {}).get("key")
            if known is not None and known != key:
                found.append(day.date)
    return found
