"""Proven harm to the champion: climb the ladder, and act on the cheapest rung that passes.

Held-out images are looked at once per judged rung, and again in later repairs of the same
champion. The level is spent over all of these looks: rung by rung alpha / (rungs k (k + 1)) at the
champion's k-th repair, which sums to alpha. So the chance that a champion is ever replaced by a
model that is no better on fresh images is at most alpha / 2 (one side of ``promote.level``).

Order of writes, so that a crash anywhere leaves a valid champion and one repair per key:
start.json, each rung's result, the registry's model, its log, the champion, decision.json, log.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__, plugins, registry
from ..artifacts import append_line, read_json, read_lines, sha256_file, sha256_json, write_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..lock import exclusive
from ..progress import Reporter
from ..repair import _judge
from . import _evidence, _ladder, trigger
from ._ladder import Case, Row

START, DECISION, LOG = "start.json", "decision.json", "log.jsonl"
WAITING = "waiting.json"
ACTED = ("promoted", "shadow", "approval", "full")
SECTIONS = ("repair", "promote", "pretrain", "deploy", "seed")


def folder_of(paths: Paths, key: str) -> Path:
    """data/deploy/repair/<key>.

    Raises:
        HeadwaterError: the key could leave that folder or hide in it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", key) or ".." in key:
        rule = "is not a plain name of letters, digits, '-', '_' and '.'"
        raise HeadwaterError(f"key '{key}'", rule, "use e.g. 0123456789ab-2026-03-15")
    return paths.repair / key


def outcome(paths: Paths, key: str) -> dict[str, Any] | None:
    """The decision of a key, or None as long as there is none."""
    file = folder_of(paths, key) / DECISION
    found: dict[str, Any] | None = read_json(file) if file.exists() else None
    return found


def history(paths: Paths) -> list[dict[str, Any]]:
    """Every repair's decision, oldest first."""
    return read_lines(paths.repair / LOG)


def waits(paths: Paths, key: str) -> bool:
    """Whether a repair could not begin yet, for want of labels or of a rest."""
    folder = folder_of(paths, key)
    return (folder / WAITING).exists() and not (folder / DECISION).exists()


def _wait(paths: Paths, key: str, outcome: str, reason: str, report: Reporter) -> dict[str, Any]:
    """No decision: the same key may be asked for again."""
    found = {"key": key, "outcome": outcome, "reason": reason}
    write_json(folder_of(paths, key) / WAITING, found)
    report.log(reason)
    return found


def requests(paths: Paths) -> list[dict[str, Any]]:
    """Repairs that ended by asking for the whole chain."""
    return [d for d in history(paths) if d["outcome"] == "full"]


# ---- before the ladder -------------------------------------------------------------------------


def _start(cfg: Config, paths: Paths, dates: list[str], key: str) -> dict[str, Any]:
    """What this repair is pinned to, written before anything else.

    Raises:
        HeadwaterError: no champion, no dates, or a key that stands for other days.
    """
    file = folder_of(paths, key) / START
    if file.exists():
        found: dict[str, Any] = read_json(file)
        if found["dates"] != sorted(set(dates)):
            rule = f"stands for {', '.join(found['dates'])}"
            raise HeadwaterError(f"key '{key}'", rule, "name these days, or take another key")
        return found
    champion = registry.champion(paths.registry)
    if champion is None or not dates:
        value = "dates" if champion else str(paths.registry)
        rule = "are none" if champion else "has no champion"
        raise HeadwaterError(value, rule, "name the harmed days, or run `headwater promote`")
    past = history(paths)
    start = {
        "key": key,
        "dates": sorted(set(dates)),
        "champion": champion,
        "attempt": sum(d["champion"] == champion and d["looks"] > 0 for d in past) + 1,
        "finishes": _finishes(paths, dates, champion, past),
    }
    write_json(file, start)
    return start


def _finishes(paths: Paths, dates: list[str], champion: str, past: list[dict[str, Any]]) -> str:
    """Whether this goes on with the repair that made the champion: no new harm was proven.

    "first": a rung made it and it was not looked at since; "later": it was, or the whole chain made
    it, which is the strongest there is; "": it is another matter.
    """
    if not any(trigger.made_by(d, champion) for d in past) or _evidence.harmed(paths, dates):
        return ""
    by_rung = any(d.get("candidate") == champion for d in past)
    looked = any(d["champion"] == champion for d in past)
    return "first" if by_rung and not looked else "later"


def resting(cfg: Config, paths: Paths, day: str) -> str | None:
    """Why no further repair begins in this week of data, or None."""
    week = pd.Timedelta(days=7)
    recent = [
        d["key"]
        for d in history(paths)
        if d["outcome"] in ACTED and pd.Timestamp(day) - pd.Timestamp(max(d["dates"])) < week
    ]
    if len(recent) < cfg.repair.per_week:
        return None
    return f"{len(recent)} repairs within a week ({', '.join(recent)}; repair.per_week)."


def level_of(cfg: Config, attempt: int) -> float:
    """Of each look: all looks of all repairs of one champion together err with 1 - level."""
    looks = sum(plugins.load("repair", name).JUDGED for name in cfg.repair.rungs)
    return 1 - (1 - cfg.promote.level) / float(max(1, looks) * attempt * (attempt + 1))


def _case(cfg: Config, paths: Paths, start: dict[str, Any]) -> tuple[Case, dict[str, Any]]:
    """Load champion and images; the hashes of all that was read."""
    model = registry.load(paths.registry, start["champion"])
    files = _evidence.source_files(cfg, paths, start["dates"])
    files["champion"] = registry.path(paths.registry, model.id) / registry.CARD
    files["shards"] = paths.shards / "lineage.json"
    inputs = {name: sha256_file(file) for name, file in files.items()}
    settings = [cfg.section(name) for name in SECTIONS]
    digest = sha256_json([start, inputs, settings])[:12]
    fresh = _evidence.gather(cfg, paths, start["dates"], model)
    seen = _evidence.seen(paths, model.id)
    evidence = _judge.Evidence(model, fresh.judge, paths.shards, seen)
    work = paths.runs / "repair" / digest
    feed = _evidence.feed(paths, start["dates"])
    finishes, images = start.get("finishes", ""), (fresh.learn, seen)
    context = _ladder.context_of(cfg, paths, model, images, feed, evidence, work, finishes)
    level = level_of(cfg, start["attempt"])
    case = Case(cfg, paths, tuple(start["dates"]), context, evidence, level, work)
    loss = {"metric": cfg.repair.metric, **asdict(context.loss)}
    read = {"inputs": inputs, "config_sha256": sha256_json(settings), "counts": fresh.counts}
    return case, {**read, "loss": loss}


# ---- after the ladder --------------------------------------------------------------------------


def _act(case: Case, rows: list[Row], start: dict[str, Any]) -> dict[str, Any]:
    """Bring the registry in line with the last rung's outcome; doing it twice changes nothing."""
    last, key = rows[-1], start["key"]
    if last["outcome"] == "asked":
        return {"outcome": "full", "reason": last["reason"], "candidate": None}
    if last["outcome"] == "stopped":
        word = "nothing" if last["rung"] == "nothing" else "stopped"
        return {"outcome": word, "reason": last["reason"], "candidate": None}
    if last["outcome"] == "skipped" and start["finishes"]:
        return {"outcome": "nothing", "reason": last["reason"], "candidate": None}
    if last["outcome"] != "passed":
        reason = "No rung passed; a person has to decide."
        return {"outcome": "none", "reason": reason, "candidate": None}
    name, gain = _ladder.enter(case, last), last["judged"]["gain"]
    about = {
        "previous": start["champion"],
        "key": key,
        "rung": last["rung"],
        "until": max(start["dates"]),
        "reason": last["reason"],
        **{k: gain[k] for k in ("difference", "low", "high", "n", "level")},
        "estimate": {"value": gain["candidate"], "n": gain["n"], "groups": gain["groups"]},
        "inputs": {"result": sha256_file(case.work / last["rung"] / _ladder.RESULT)},
    }
    word = introduce(case.cfg, case.paths, name, about)
    return {"outcome": word, "reason": last["reason"], "candidate": name}


def introduce(cfg: Config, paths: Paths, name: str, about: dict[str, Any]) -> str:
    """Where a candidate that passed the gate goes: approval, shadow or service."""
    state = registry.states(paths.registry).get(name)
    if state is None:
        registry.record(paths.registry, "candidate", name, about)
    if cfg.repair.approval and state in (None, "candidate"):
        return "approval"
    if cfg.repair.shadow_days:
        if state in (None, "candidate", "approved"):
            registry.record(paths.registry, "shadow", name, about)
        return "shadow" if state != "champion" else "promoted"
    registry.promote(paths.registry, name, about, expected=about["previous"])
    return "promoted"


def _summary(rows: list[Row], start: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    judged = [r for r in rows if "judged" in r]
    best = rows[-1]["judged"]["gain"] if rows and rows[-1]["outcome"] == "passed" else None
    return {
        **start,
        **more,
        "rung": rows[-1]["rung"] if rows else None,
        "gain": best and {k: best[k] for k in ("difference", "low", "high", "n", "level")},
        "cost": {
            "seconds": round(sum(r["seconds"] for r in rows), 2),
            "labels": rows[-1]["labels"] if rows else 0,
        },
        "looks": len(judged),
        "rungs": rows,
        "version": __version__,
    }


def _finish(paths: Paths, decision: dict[str, Any]) -> dict[str, Any]:
    """Write the decision and its line of the log, each once."""
    file = folder_of(paths, decision["key"]) / DECISION
    if not file.exists():
        write_json(file, decision)
    if all(d["key"] != decision["key"] for d in history(paths)):
        line = {**decision, "decision_sha256": sha256_file(file)}
        line["rungs"] = [_short(r) for r in decision["rungs"]]
        line["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        append_line(paths.repair / LOG, line)
    return decision


def _short(row: Row) -> Row:
    names = ("rung", "outcome", "reason", "seconds", "expected_seconds", "labels", "candidate")
    return {k: row[k] for k in names if k in row}


def _superseded(paths: Paths, start: dict[str, Any]) -> bool:
    """Whether another model serves now than the one to be repaired, and not by this repair."""
    now = registry.settle(paths.registry)
    own = {e["id"] for e in registry.history(paths.registry) if e.get("key") == start["key"]}
    return now != start["champion"] and now not in own


def run(cfg: Config, paths: Paths, dates: list[str], key: str = "") -> dict[str, Any]:
    """Repair the champion for the harm of ``dates``; the decision, written once per key.

    Asking again for a key gives the same decision; an interrupted repair goes on. A second
    process waits for the first.

    Raises:
        HeadwaterError: no champion, no dates, an unsafe key or one of other days, images that
            changed, or products that are missing.
    """
    key = key or f"{registry.champion(paths.registry)}-{max(dates, default='')}"
    with exclusive(paths.repair / ".lock"), Reporter("repair") as report:
        if (known := outcome(paths, key)) is not None:
            return _finish(paths, known)
        fresh_start = not (folder_of(paths, key) / START).exists()
        if fresh_start and dates and (why := resting(cfg, paths, max(dates))):
            return _wait(paths, key, "resting", why, report)
        start = _start(cfg, paths, dates, key)
        if _superseded(paths, start):
            reason = f"{start['champion']} serves no more."
            more: dict[str, Any] = {"outcome": "superseded", "reason": reason, "candidate": None}
            return _finish(paths, _summary([], start, more))
        case, read = _case(cfg, paths, start)
        rows = _ladder.climb(case)
        if rows[-1]["outcome"] == "waiting":
            return _wait(paths, key, "labels", rows[-1]["reason"], report)
        decision = _finish(paths, _summary(rows, start, read | _act(case, rows, start)))
        report.log(f"{decision['outcome']} at rung {decision['rung']}: {decision['reason']}")
    return decision
