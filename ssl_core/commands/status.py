"""``headwater status``: what is fresh, what serves, what was left, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ..artifacts import read_json
from ._common import DEFAULT, Json, Params, Set, ago, emit, settings, table
from ._state import Standing, champion, labelled, leftovers, standings, trainings, verdicts, workers

if TYPE_CHECKING:
    from ..config import Config, Paths

SHOWN = 2  # reasons a line names
SLOW = 600  # seconds after which a temporary file is taken for left behind
MARKS = {"fresh": "✓", "stale": "!", "missing": "·"}


def command(params: Params = DEFAULT, set_: Set = None, as_json: Json = False) -> None:
    """Say what is fresh, what serves, what was interrupted, and what to do next.

    Stages are compared by the hashes in their lineage files and by the configuration; local
    images by name, size and time. Nothing is computed. Examples:

        headwater status

        headwater status --json | jq -r .next
    """
    from ..config import Paths

    found = look(settings(params, set_), Paths())
    if as_json:
        emit(found)
    else:
        typer.echo(text(found))


def look(cfg: Config, paths: Paths) -> dict[str, Any]:
    """All that ``headwater status`` says."""
    stages = standings(cfg, paths)
    left = [x for x in leftovers(paths) if x.only or x.age > SLOW]
    found: dict[str, Any] = {
        "stages": [{"stage": s.stage, "state": s.state, "why": list(s.why)} for s in stages],
        "champion": _champion(paths),
        "decision": _decision(paths),
        "verdicts": [_brief(v) for v in verdicts(paths)],
        "running": workers(paths),
        "trainings": [t | {"folder": t["folder"].as_posix()} for t in trainings(paths)],
        "leftovers": [x.path.as_posix() for x in left],
    }
    return found | {"next": advice(found, stages, cfg, paths)}


def _champion(paths: Paths) -> dict[str, Any] | None:
    name = champion(paths)
    file = paths.registry / "models" / str(name) / "card.json"
    if name is None or not file.exists():
        return None if name is None else {"id": name, "damaged": f"{file} is missing"}
    card = read_json(file)
    keys = ("method", "images", "classes", "accuracy", "image_size")
    return {"id": name} | {k: card[k] for k in keys if k in card}


def _decision(paths: Paths) -> dict[str, Any] | None:
    file = paths.promotion / "decision.json"
    if not file.exists():
        return None
    found = read_json(file)
    return {k: found.get(k) for k in ("candidate", "promoted", "reason")}


def _brief(verdict: dict[str, Any]) -> dict[str, Any]:
    right = verdict.get("accuracy")
    share = right.get("value") if isinstance(right, dict) else right
    return {k: verdict.get(k) for k in ("date", "verdict", "model")} | {"accuracy": share}


def advice(found: dict[str, Any], stages: list[Standing], cfg: Config, paths: Paths) -> str:
    """The next command, and why."""
    if found["running"]:
        names = ", ".join(f"{w['stage']} (pid {w['pid']})" for w in found["running"])
        return f"wait: {names} is at work"
    if any(x.endswith(".old") for x in found["leftovers"]):
        return "headwater doctor: an interrupted write left the only copy of a product aside"
    report = paths.validation / "report.json"
    failed = report.exists() and not read_json(report)["success"]
    if failed and next(s for s in stages if s.stage == "validate").state == "fresh":
        fix = "mend the data or section validate of params.yaml, then headwater run"
        return f"{fix}: validation failed ({report})"
    idle = () if labelled(cfg, paths) else ("evaluate", "promote")  # without labels
    rest = [s.stage for s in stages if s.state != "fresh" and s.stage not in idle]
    if rest:
        again = ", going on with the interrupted training" if found["trainings"] else ""
        return f"headwater run: {', '.join(rest)} to do{again}"
    return _after(found, cfg, paths)


def _after(found: dict[str, Any], cfg: Config, paths: Paths) -> str:
    """Everything is fresh: what deployment asks for."""
    days = found["verdicts"]
    if days and days[-1]["verdict"] == "harm":
        date = days[-1]["date"]
        return f"{date} proved harm: headwater diagnose {date}, then headwater repair {date}"
    if found["champion"] is None and not labelled(cfg, paths):
        return "no image has a label: headwater report; add labels to evaluate and promote"
    if found["champion"] is None:
        return "no champion: headwater report shows why; more epochs, data or another method"
    return "nothing to do: headwater report, headwater predict DATE, or headwater serve"


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    rows = [(MARKS[s["state"]], s["stage"], s["state"], _why(s["why"])) for s in found["stages"]]
    lines = ["Stages", table(rows), "", f"Champion   {_about(found['champion'])}"]
    if found["decision"]:
        lines.append(f"Decision   {found['decision']['reason']}")
    if found["verdicts"]:
        shown = [
            (v["date"], v["verdict"], "" if v["accuracy"] is None else f"{v['accuracy']:.1%}")
            for v in found["verdicts"]
        ]
        lines += ["Days", table(shown)]
    for t in found["trainings"]:
        loss = "" if t["loss"] is None else f", loss {t['loss']:.4g}"
        lines.append(f"Training   {t['state']}: step {t['step']}{loss}, {ago(t['age'])}")
    lines += [f"Running    {w['stage']}, pid {w['pid']}" for w in found["running"]]
    if found["leftovers"]:
        lines.append(f"Left over  {len(found['leftovers'])} temporary files: headwater doctor")
    return "\n".join([*lines, "", f"Next       {found['next']}"])


def _why(reasons: list[str]) -> str:
    more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return "; ".join(reasons[:SHOWN]) + more


def _about(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none"
    right = found.get("accuracy")
    share = f", {right['value']:.1%} of {right['n']} held-out images" if right else ""
    return f"{found['id']} ({found.get('method')}, {found.get('images')} images{share})"
