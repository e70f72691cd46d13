"""One day of deployment: has it changed, does that do harm, and is the feed sound?

Detectors say whether the images changed, and only evidence over days raises the alarm
(``_watch``, ``ssl_core/alarm.py``); only labels say whether that did harm (``_proof``). The two
are kept apart: retraining on every change would spend much and mend nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from .. import alarm
from ..artifacts import atomic_dir, read_json, write_json, write_lineage
from ..config import Config, Paths
from ..progress import Reporter
from ._days import (
    LOG,
    labels_file,
    partition,
    read_labels,
    read_predictions,
    read_reference,
    reference_file,
)
from ._estimates import guess, say, slices
from ._labelled import history as labelled_days
from ._labelled import join
from ._proof import accuracy, harmed
from ._watch import Look, last_look, stale
from ._words import say_drift, say_harm, say_inputs

VERDICT = "verdict.json"


def inputs(cfg: Config, frame: pd.DataFrame, rejected: int) -> dict[str, Any]:
    """What came in. ``broken`` points at the feed, which no retraining mends."""
    total = len(frame) + rejected
    share = rejected / total if total else 0.0
    distinct = int(frame["sha256"].nunique())
    return {
        "images": total,
        "rejected": rejected,
        "reject_share": share,
        "distinct": distinct,
        "broken": not len(frame)
        or share > cfg.validate_.max_reject_share
        or distinct < len(frame) / 2,
    }


def nothing(date: str, found: dict[str, Any]) -> dict[str, Any]:
    """The verdict on a day without a single readable image."""
    return {
        "date": date,
        "model": None,
        "scores": {},
        "skipped": {},
        "evidence": None,
        "accuracy": None,
        "estimates": None,
        "slices": [],
        "inputs": found,
        "confidence": None,
        "drift": False,
        "harm": False,
        "verdict": "ok",
        "reason": say_inputs(found) + "Nothing was predicted.",
    }


def evidence(cfg: Config, look: Look) -> dict[str, Any]:
    """What all days up to this one say together; ``key`` names all it depends on."""
    count = max(1, len(cfg.deploy.detectors))
    return {**alarm.describe(look.state, cfg.deploy.alpha, count), "key": look.key}


def judge(cfg: Config, paths: Paths, date: str) -> dict[str, Any]:
    """The verdict on one day, without writing it."""
    frame, rejected = read_predictions(paths, date)
    found = inputs(cfg, frame, rejected)
    if not len(frame):
        return nothing(date, found)
    model = str(frame["model"].iloc[0])
    reference = read_reference(paths, model)
    look = last_look(cfg, paths, model, date)
    known, drift = evidence(cfg, look), bool(look.state.alarm)
    labelled = join(cfg, paths, date, frame, read_labels(cfg, paths, date))
    past = labelled_days(cfg, paths, model, date)
    right = accuracy(cfg, labelled, reference, date, past)
    guessed = guess(cfg, paths, date, model, frame, reference, past, drift)
    harm = harmed(cfg.deploy, right)
    sure, was = float(frame["confidence"].mean()), float(reference["confidence"].mean())
    sentences = f"{say_drift(look, known)} {say_harm(cfg.deploy, right)}{say(guessed)}"
    return {
        "date": date,
        "model": model,
        "scores": look.scores,
        "skipped": look.skipped,
        "evidence": known,
        "accuracy": right,
        "estimates": guessed,
        "slices": slices(cfg, labelled, reference) if labelled else [],
        "inputs": found,
        "confidence": {"value": sure, "reference": was, "drop": was - sure},
        "drift": drift,
        "harm": harm,
        "verdict": "harm" if harm else "drift" if drift else "ok",
        "reason": say_inputs(found) + sentences,
    }


def write(cfg: Config, paths: Paths, verdict: dict[str, Any]) -> None:
    """monitor/date=<date>/verdict.json, with what it was made from."""
    date = verdict["date"]
    sources = {"predictions": partition(paths.predictions, date) / LOG}
    labels = labels_file(cfg, paths, date)
    if labels.exists():
        sources["labels"] = labels
    if verdict["model"]:
        sources["reference"] = reference_file(paths, verdict["model"])
    with atomic_dir(partition(paths.monitor, date)) as out:
        write_json(out / VERDICT, verdict)
        settings = cfg.section("deploy") | {"seed": cfg.seed}
        write_lineage(out, "monitor", settings, sources, verdict["inputs"])


def run(cfg: Config, paths: Paths, date: str) -> dict[str, Any]:
    """Write monitor/date=<date>/verdict.json; run again when labels have come.

    Evidence rests on all days up to the day. If this one came late, the verdicts on later days
    that are written already are written anew.

    Raises:
        HeadwaterError: no predictions for this day, unknown model, unusable labels or settings.
    """
    with Reporter("monitor") as report:
        verdict = judge(cfg, paths, date)
        write(cfg, paths, verdict)
        report.log(f"{date}: {verdict['verdict']}. {verdict['reason']}")
        if verdict["model"]:
            for later in stale(cfg, paths, verdict["model"], date):
                found = judge(cfg, paths, later)
                write(cfg, paths, found)
                report.log(f"{later}, judged again: {found['verdict']}. {found['reason']}")
    written: dict[str, Any] = read_json(partition(paths.monitor, date) / VERDICT)  # plain numbers
    return written


def _flat(verdict: dict[str, Any]) -> dict[str, Any]:
    row = {k: verdict.get(k) for k in ("date", "model", "verdict", "drift", "harm", "reason")}
    known = verdict.get("evidence") or {}
    row |= {"evidence": known.get("value"), "evidence_needed": known.get("threshold")}
    row |= {k: known.get(k) for k in ("alarm", "since")}
    right = verdict.get("accuracy") or {}
    row |= {k: right.get(k) for k in ("low", "high", "reference")}
    row |= {"accuracy": right.get("value"), "labels": right.get("n")}
    proven = right.get("proof") if verdict.get("harm") else None
    row["harm_since"] = proven["since"] if proven else None  # the day on which the loss began
    row["confidence"] = (verdict.get("confidence") or {}).get("value")
    row |= {k: (verdict.get("inputs") or {}).get(k) for k in ("images", "rejected", "broken")}
    for name, score in verdict.get("scores", {}).items():
        row |= {f"p_{name}": score["p_value"], f"statistic_{name}": score["statistic"]}
    return row


def history(paths: Paths) -> pd.DataFrame:
    """All verdicts by date, one row each: date, model, verdict, reason, evidence,
    evidence_needed, alarm (the day it was raised), since, accuracy, low, high, reference, labels,
    harm_since, confidence, images, rejected, broken, and p_<detector>, statistic_<detector>.
    """
    files: list[Path] = sorted(paths.monitor.glob(f"date=*/{VERDICT}"))
    return pd.DataFrame([_flat(read_json(f)) for f in files])
