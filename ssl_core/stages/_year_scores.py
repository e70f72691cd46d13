"""Scores of a simulated year, from what was noted week by week.

*Lost accuracy-weeks*: the sum over weeks, from the change on, of the first champion's accuracy on
the same week without the change less the accuracy of what served. Both are true accuracies of all
images of the week, and mostly of the same pictures, so chance cancels; the sum may be negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._year import Scenario

Case = Mapping[str, Any]
Row = dict[str, Any]
WORK = ("training", "repair")  # what "cost" counts; watching is told apart


def find(cases: Iterable[Case], scenario: str, policy: str) -> Case | None:
    """One case, or None if it has not been run."""
    same = (c for c in cases if (c["scenario"], c["policy"]) == (scenario, policy))
    return next(same, None)


def lost(weeks: Sequence[Mapping[str, Any]], normal: Sequence[float], onset: int) -> float:
    """Accuracy-weeks lost from week ``onset`` on (0: from the first)."""
    pairs = zip(weeks, normal, strict=True)
    return float(sum(was - w["accuracy"] for w, was in pairs if w["week"] >= onset))


def alarms(weeks: Sequence[Mapping[str, Any]]) -> list[int]:
    """Weeks in which an alarm begins."""
    before = [False, *(bool(w["alarm"]) for w in weeks[:-1])]
    return [w["week"] for w, b in zip(weeks, before, strict=True) if w["alarm"] and not b]


def row(case: Case, normal: Sequence[float], about: Scenario, margin: float) -> Row:
    """All scores of one case. A promotion is harmful if accuracy in the four weeks after it is
    more than ``margin`` below what the model before would have had on the same images.
    """
    raised, onset = alarms(case["weeks"]), about.onset
    true = [w for w in raised if onset and w >= onset]
    forward = [m for m in case["moves"] if m["how"] != "rollback"]
    after = [m["week"] for m in forward if onset and m["week"] >= onset]
    return {
        "scenario": case["scenario"],
        "policy": case["policy"],
        "false_alarms": len(raised) - len(true),
        "delay": true[0] - onset if true else None,
        "mended_after": after[0] - onset if after else None,
        "lost": lost(case["weeks"], normal, onset),
        "promotions": len(forward),
        "harmful": sum(m["difference"] < -margin for m in forward),
        "rollbacks": len(case["moves"]) - len(forward),
        "seconds": sum(case["seconds"].get(k, 0.0) for k in WORK),
        "watching": case["seconds"].get("monitoring", 0.0),
        "labels": case["labels"],
        "trainings": case["trainings"],
    }


def table(cases: Sequence[Case], about: Mapping[str, Scenario], margin: float) -> list[Row]:
    """One row per case; ``recovered`` is the share of what policy never lost in that scenario, if
    that is more than one accuracy-week.
    """
    whole = find(cases, "none", "never")
    normal = [w["accuracy"] for w in whole["weeks"]] if whole else []
    rows = [row(c, normal, about[c["scenario"]], margin) for c in cases]
    losses = {r["scenario"]: r["lost"] for r in rows if r["policy"] == "never"}
    for r in rows:
        all_ = losses[r["scenario"]]
        can = about[r["scenario"]].mendable and about[r["scenario"]].onset and all_ > 1
        r["recovered"] = 1 - r["lost"] / all_ if can else None
    return rows


def totals(rows: Sequence[Row], about: Mapping[str, Scenario]) -> list[Row]:
    """One row per policy over its scenarios: ``recovered`` of all that another model could win
    back, ``cost`` as a share of periodic retraining in the same scenarios.
    """
    found = []
    for policy in dict.fromkeys(r["policy"] for r in rows):
        mine = [r for r in rows if r["policy"] == policy]
        names = [r["scenario"] for r in mine]
        can = [r for r in mine if r["recovered"] is not None]
        other = [r for r in rows if r["policy"] == "periodic" and r["scenario"] in names]
        never = [r for r in rows if r["policy"] == "never"]
        all_ = sum(r["lost"] for r in never if r["scenario"] in {c["scenario"] for c in can})
        total: Row = {"policy": policy, "scenarios": names}
        for key in ("false_alarms", "lost", "promotions", "harmful", "rollbacks", "seconds"):
            total[key] = sum(r[key] for r in mine)
        for key in ("watching", "labels", "trainings"):
            total[key] = sum(r[key] for r in mine)
        total["recovered"] = 1 - sum(r["lost"] for r in can) / all_ if can else None
        full = sum(r["seconds"] for r in other)
        total["cost"] = total["seconds"] / full if len(other) == len(mine) and full else None
        delays = [r["delay"] for r in mine if about[r["scenario"]].onset]
        total["found"] = [sum(d is not None for d in delays), len(delays)]
        found.append(total)
    return found


def say(case: Case) -> str:
    """One case in a line."""
    mean = sum(w["accuracy"] for w in case["weeks"]) / len(case["weeks"])
    moves = ", ".join(f"week {m['week']} {m['how']}" for m in case["moves"][:4])
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in case["seconds"].items())
    return f"mean accuracy {mean:.1%}; {moves or 'no promotion'}; {seconds or 'no cost'}"


def short(total: Row) -> str:
    """A policy's year in a line."""
    back = "" if total["recovered"] is None else f"{total['recovered']:.0%} recovered, "
    cost = "" if total["cost"] is None else f" ({total['cost']:.0%} of periodic)"
    return (
        f"{back}{total['seconds']:.0f} s of training and repair{cost}, "
        f"{total['false_alarms']} false alarms, {total['harmful']} harmful promotions"
    )
