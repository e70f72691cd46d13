"""What follows a repair: approval, the shadow's days, and the way back if labels ask for it.

Everything is derived from the registry's log and the files of deployment, so it may be called at
any time and any number of times: it does what is due and nothing twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from .. import gate, registry
from ..artifacts import append_line, read_lines, sha256_file, sha256_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..harm._accuracy import newcombe
from ..lock import exclusive
from ..progress import Reporter
from . import _evidence, predict
from ._days import LOG, labels_file, partition, read_labels, relative, served_by
from .repair import introduce

LOOKS = "looks.jsonl"  # every look at a new champion's labels
Entry = dict[str, Any]


def approve(paths: Paths, name: str, reason: str) -> None:
    """A person lets a candidate go on; ``run`` acts on it.

    Raises:
        HeadwaterError: no model of this id waits for approval.
    """
    state = registry.states(paths.registry).get(name)
    if state != "candidate":
        waiting = [n for n, s in registry.states(paths.registry).items() if s == "candidate"]
        fix = f"take one of {', '.join(waiting)}" if waiting else "no candidate waits"
        raise HeadwaterError(f"model '{name}'", f"is {state or 'unknown'}, not a candidate", fix)
    registry.record(paths.registry, "approve", name, {"reason": reason})


def _introduced(paths: Paths, name: str) -> Entry:
    """What the log says of a candidate's repair, without what is the log's own."""
    found = [
        e for e in registry.history(paths.registry) if e["event"] == "candidate" and e["id"] == name
    ][-1]
    return {k: v for k, v in found.items() if k not in ("event", "id", "time")}


# ---- two models on the same labelled images ----------------------------------------------------


def _said(paths: Paths, date: str, model: str) -> pd.DataFrame:
    """What a model said of one day: path, sha256, prediction; live or in the shadow."""
    shadow = partition(paths.deploy / "shadow" / model, date) / LOG
    live = partition(paths.predictions, date) / LOG
    for file in (live, shadow):
        if file.exists():
            frame = pd.read_parquet(file, columns=["path", "sha256", "prediction", "model"])
            if (frame["model"] == model).all():
                return frame
    raise HeadwaterError(
        shadow, "does not exist", f"run `headwater predict {date} --model {model}`"
    )


def labelled(cfg: Config, paths: Paths, dates: list[str], mine: str, other: str) -> pd.DataFrame:
    """Labelled images of the days: group, and whether each model is right (correct, other)."""
    parts = []
    for date in dates:
        labels = read_labels(cfg, paths, date)
        if labels is None:
            continue
        both = _said(paths, date, mine).merge(
            _said(paths, date, other)[["path", "prediction"]], on="path", suffixes=("", "_other")
        )
        both["path"] = relative(both["path"], cfg, date)
        parts.append(both.merge(labels[labels["label"] != ""], on="path").assign(date=date))
    columns = ["sha256", "group", "correct", "other"]
    if not parts:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(parts, ignore_index=True)
    group = frame["group"] if "group" in frame else pd.Series("", frame.index)
    known = {s for m in (mine, other) for s in _evidence.seen(paths, m)["sha256"]}
    frame = frame.assign(
        group=group.fillna("").where(group.fillna("") != "", frame["date"] + "/" + frame["path"]),
        correct=frame["prediction"] == frame["label"],
        other=frame["prediction_other"] == frame["label"],
    )
    return frame.loc[~frame["sha256"].isin(known), columns].reset_index(drop=True)


def _serve(cfg: Config, paths: Paths, dates: list[str], model: str) -> None:
    """Let a model answer beside the log on days it has not answered yet."""
    for date in dates:
        try:
            _said(paths, date, model)
        except HeadwaterError:
            predict.run(cfg, paths, date, model)


# ---- shadow ------------------------------------------------------------------------------------


def _shadow(cfg: Config, paths: Paths, name: str) -> Entry:
    """Let a shadow answer, and settle it once its days and their labels are there."""
    about, now = _introduced(paths, name), registry.champion(paths.registry)
    if now != about["previous"]:
        reason = f"Proven against {about['previous']}, but {now} serves by now."
        registry.record(paths.registry, "reject", name, {"reason": reason})
        return {"shadow": name, "state": "rejected", "reason": reason}
    days = [d.date for d in served_by(paths, str(now)) if d.date > about["until"]]
    days = days[: cfg.repair.shadow_days]
    _serve(cfg, paths, days, name)
    if len(days) < cfg.repair.shadow_days:
        reason = f"{len(days)} of {cfg.repair.shadow_days} days have come."
        return {"shadow": name, "state": "shadow", "reason": reason}
    return _settle(cfg, paths, name, about, days)


def _settle(cfg: Config, paths: Paths, name: str, about: Entry, days: list[str]) -> Entry:
    frame = labelled(cfg, paths, days, name, about["previous"])
    if frame["group"].nunique() < gate.LEAST:
        text = f"{frame['group'].nunique()} labelled groups in {len(days)} days of shadow"
        if cfg.repair.shadow_unlabelled == "wait":
            reason = f"{text}, {gate.LEAST} needed (repair.shadow_unlabelled: wait)."
            return {"shadow": name, "state": "shadow", "reason": reason}
        reason = f"{text}: passed unproven (repair.shadow_unlabelled: pass)."
    else:
        found = gate.compare(frame, cfg.promote, cfg.promote.level, cfg.seed)
        reason = f"In {len(days)} days of shadow: {gate.say(found)}."
        if found["high"] < 0 or found["difference"] < -cfg.promote.margin:
            registry.record(paths.registry, "reject", name, {"reason": reason, "days": days})
            return {"shadow": name, "state": "rejected", "reason": reason}
    inputs = {d: sha256_file(partition(paths.predictions, d) / LOG) for d in days}
    more = {"reason": f"{about['reason']} {reason}", "shadow_inputs": inputs}
    registry.promote(paths.registry, name, about | more, expected=about["previous"])
    return {"shadow": name, "state": "champion", "reason": reason}


# ---- the way back ------------------------------------------------------------------------------


def _promotion(paths: Paths) -> Entry | None:
    """The event that made the champion, if it was a promotion over another model."""
    moves = [e for e in registry.history(paths.registry) if e["event"] in registry.MOVES]
    last = moves[-1] if moves else None
    if last is None or last["event"] != "promote" or not last.get("previous"):
        return None
    return last if last["id"] == registry.champion(paths.registry) else None


def _days(cfg: Config, paths: Paths, name: str) -> list[str]:
    """Labelled days of the champion's first ``repair.watch_days``."""
    served = [d.date for d in served_by(paths, name)]
    if not served:
        return []
    end = pd.Timestamp(served[0]) + pd.Timedelta(days=cfg.repair.watch_days)
    early = (d for d in served if pd.Timestamp(d) < end)
    return [d for d in early if labels_file(cfg, paths, d).exists()]


def _below(cfg: Config, frame: pd.DataFrame, estimate: Entry | None) -> bool:
    """Whether labels prove less than the gate's estimate, by more than ``deploy.min_drop``."""
    if not estimate:
        return False
    n, before = int(frame["group"].nunique()), estimate["groups"]
    now = float(frame["correct"].mean())
    _, high = newcombe(now * n, n, estimate["value"] * before, before)
    return high < -cfg.deploy.min_drop


def live(cfg: Config, paths: Paths) -> Entry:
    """Compare a new champion with the one before on the labelled days since; maybe go back.

    It goes back if labels prove the new one worse than the old one on the same images (the level
    is spent over the looks: alpha / (k (k + 1)) at look k), or if it is proven to lie below its
    own estimate at the gate and the old one is no worse.
    """
    last = _promotion(paths)
    if last is None or not cfg.repair.watch_days:
        return {"live": None, "reason": "No recent promotion to watch."}
    name, old, days = last["id"], last["previous"], _days(cfg, paths, last["id"])
    labels = {d: sha256_file(labels_file(cfg, paths, d)) for d in days}
    digest = sha256_json([last["time"], name, old, labels])
    looks = [x for x in read_lines(paths.repair / LOOKS) if x["id"] == name]
    looks = [x for x in looks if x["promoted"] == last["time"]]
    if looks and looks[-1]["digest"] == digest and not looks[-1]["back"]:
        return {"live": name, "reason": "No new labels."}
    _serve(cfg, paths, days, old)
    frame = labelled(cfg, paths, days, name, old)
    if frame["group"].nunique() < max(gate.LEAST, cfg.deploy.min_labels):
        return {"live": name, "reason": f"{frame['group'].nunique()} labelled groups: too few."}
    k = len([x for x in looks if x["digest"] != digest]) + 1
    level = 1 - (1 - cfg.promote.level) / (k * (k + 1))
    found = gate.compare(frame, cfg.promote, level, cfg.seed)
    below = _below(cfg, frame, last.get("estimate"))
    back = bool(found["high"] < 0 or (below and found["difference"] <= 0))
    reason = f"After promotion, beside {old} on the same images: {gate.say(found)}"
    reason += f"; below the gate's estimate of {last['estimate']['value']:.1%}." if below else "."
    look = {"id": name, "promoted": last["time"], "digest": digest, "look": k, "back": back}
    if all(x["digest"] != digest for x in looks):
        more = {"reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        append_line(paths.repair / LOOKS, look | more)
    if back:
        registry.rollback(paths.registry, reason, expected=name)
    return {"live": name, "back": back, "reason": reason}


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Do what is due: introduce the approved, settle shadows, watch the champion.

    Raises:
        HeadwaterError: damaged models or unusable files of deployment.
    """
    with exclusive(paths.repair / ".lock"), Reporter("watch") as report:
        registry.settle(paths.registry)
        states, done = registry.states(paths.registry), []
        for name in [n for n, s in states.items() if s == "approved"]:
            about = _introduced(paths, name)
            if about["previous"] != registry.champion(paths.registry):
                reason = f"{about['previous']}, which it was proven against, serves no more."
                registry.record(paths.registry, "reject", name, {"reason": reason})
                done.append({"approved": name, "state": "rejected", "reason": reason})
                continue
            done.append({"approved": name, "state": introduce(cfg, paths, name, about)})
        states = registry.states(paths.registry)
        done += [_shadow(cfg, paths, n) for n, s in states.items() if s == "shadow"]
        done.append(live(cfg, paths))
        for entry in done:
            report.log(str(entry))
    return {"champion": registry.champion(paths.registry), "done": done}


def open_matters(paths: Paths) -> bool:
    """Whether anything waits or is watched at all."""
    states = registry.states(paths.registry).values()
    return _promotion(paths) is not None or not {"shadow", "approved"}.isdisjoint(states)


def due(cfg: Config, paths: Paths) -> str:
    """A digest of all that ``run`` looks at: it has something to do when this changed."""
    folder = paths.root / cfg.deploy.labels
    files = [*sorted(folder.glob("*.csv")), *sorted(paths.predictions.glob(f"date=*/{LOG}"))]
    stamps = [[f.as_posix(), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return sha256_json([stamps, registry.history(paths.registry)])
