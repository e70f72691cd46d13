"""Tell people of drift, harm, promotion, rollback and what waits for them: each event once.

Events are derived from what lies on disk, and what was delivered is noted: a crash or a receiver
that is down loses none. A failure is noted too and never stops anything.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from .. import alerts, registry
from ..artifacts import append_line, read_lines, sha256_json
from ..config import Config, Paths
from ..lock import exclusive
from ..progress import Reporter
from . import monitor, repair

LOG = "alerts.jsonl"
GIVE_UP = 20  # failed deliveries of one event to one address
FIRST = 3  # events told when there is no log yet; older ones are only noted
MOVES = {
    "promote": "{id} is champion now",
    "rollback": "rolled back to {id}",
    "shadow": "{id} answers in the shadow",
    "reject": "{id} was rejected",
}
NEEDS = {
    "approval": "a repair waits for approval: headwater approve {candidate}",
    "stopped": "the feed has to be mended",
    "none": "no repair passed: a person has to decide",
    "full": "a full retraining was asked for",
}
Event = dict[str, Any]


def _verdicts(paths: Paths) -> list[Event]:
    found = monitor.history(paths)
    events: list[Event] = []
    for row in found.to_dict("records") if len(found) else []:
        if row["verdict"] not in ("drift", "harm"):
            continue
        raised = row.get("alarm") if row["verdict"] == "drift" else None
        day = row["date"] if raised is None or pd.isna(raised) else raised
        key = f"{row['verdict']}:{row['model']}:{day}"  # a standing alarm is one event
        title = f"{row['verdict']} on {day}"
        events.append({"key": key, "title": title, "text": row["reason"], "at": str(day)})
    return list({e["key"]: e for e in reversed(events)}.values())[::-1]


def _to(address: str) -> str:
    """The address as the log names it: two webhooks of one host stay apart."""
    return f"{alerts.shown(address)} {sha256_json(address)[:8]}"


def events(paths: Paths) -> list[Event]:
    """All there is to tell: key, title, text, and about when."""
    found = _verdicts(paths)
    for entry in registry.history(paths.registry):
        if entry["event"] in MOVES:
            title, key = (
                MOVES[entry["event"]].format(**entry),
                f"registry:{sha256_json(entry)[:16]}",
            )
            found.append(
                {"key": key, "title": title, "text": entry.get("reason", ""), "at": entry["time"]}
            )
    for done in repair.history(paths):
        if done["outcome"] in NEEDS:
            title, key = NEEDS[done["outcome"]].format(**done), f"repair:{done['key']}"
            found.append({"key": key, "title": title, "text": done["reason"], "at": done["time"]})
    return found


def pending(cfg: Config, paths: Paths) -> list[tuple[str, Event]]:
    """(address, event) not delivered yet; an address appears as it is in the configuration."""
    log = read_lines(paths.deploy / LOG)
    done = {(x["key"], x["to"]) for x in log if x["error"] is None}
    tries = pd.Series([(x["key"], x["to"]) for x in log], dtype=object).value_counts()
    left = []
    for address in cfg.deploy.alerts:
        for event in events(paths):
            at = (event["key"], _to(address))
            if at not in done and tries.get(at, 0) < GIVE_UP:
                left.append((address, event))
    return left


def _note(paths: Paths, address: str, event: Event, error: str | None, sent: bool) -> None:
    line = {"key": event["key"], "to": _to(address), "error": error, "sent": sent}
    line["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(paths.deploy / LOG, line)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Send what is due; counts. Nothing here raises for a receiver that cannot be reached."""
    counts = {"sent": 0, "failed": 0, "old": 0}
    with exclusive(paths.deploy / ".alerts.lock"), Reporter("alert") as report:
        left = pending(cfg, paths)
        if not (paths.deploy / LOG).exists():
            recent = {e["key"] for e in sorted(events(paths), key=lambda e: e["at"])[-FIRST:]}
            for address, event in [x for x in left if x[1]["key"] not in recent]:
                _note(paths, address, event, None, False)
                counts["old"] += 1
            left = [x for x in left if x[1]["key"] in recent]
        down: set[str] = set()
        for address, event in left:
            if address in down:  # the rest can wait for the next call
                continue
            error = alerts.send(address, f"headwater: {event['title']}", event["text"], event)
            _note(paths, address, event, error, error is None)
            counts["failed" if error else "sent"] += 1
            if error:
                down.add(address)
                report.log(f"{alerts.shown(address)}: {error}")
    return counts
