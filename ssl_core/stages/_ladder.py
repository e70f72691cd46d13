"""One rung of a repair: try it, judge it, and keep what came of it on disk.

A rung that was tried is not tried again after a restart: its result is in the work folder, which
is named for all it depends on. So a crash never buys a second look at the judge's images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import gate, models, plugins, registry
from ..artifacts import atomic_dir, read_json, write_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..evaluate import _head
from ..repair import _common, _judge
from ..repair._common import Ask, Candidate, Context, Skip, Stop
from ..report import model_card
from ..shards import DEPLOYMENT
from ..types import Array
from ._entry import REFERENCE, with_groups
from ._evidence import DAYS

RESULT, ENTRY = "result.json", "entry.json"
EXTRA = ("reference.parquet", "seen.parquet", model_card.NAME)
LASTS = 91  # days in which a repair has to hold; if it did not, a stronger rung is taken
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One repair, ready to climb. ``level``: of each look at the fresh held-out images."""

    cfg: Config
    paths: Paths
    dates: tuple[str, ...]
    context: Context
    evidence: _judge.Evidence
    level: float
    work: Path


def climb(case: Case) -> list[Row]:
    """Try the rungs in order until one passes, stops or asks."""
    rows: list[Row] = []
    for name in case.cfg.repair.rungs:
        rows.append(tried(case, name) or attempt(case, name, sum(r["seconds"] for r in rows)))
        if rows[-1]["outcome"] in ("passed", "stopped", "asked", "waiting"):
            break
    return rows


def tried(case: Case, name: str) -> Row | None:
    """What an earlier, interrupted call found."""
    file = case.work / name / RESULT
    found: Row | None = read_json(file) if file.exists() else None
    return found


def attempt(case: Case, name: str, spent: float) -> Row:
    """Ask one rung, judge what it proposes, and write the result."""
    rung, cfg = plugins.load("repair", name), case.cfg
    context = replace(case.context, work=case.work / f"{name}.work")
    expected = rung.cost(context, cfg) * case.context.seconds
    row: Row = {"rung": name, "expected_seconds": round(expected, 1), "seconds": 0.0, "labels": 0}
    began = time.monotonic()
    if rung.JUDGED and (why := too_few(case)) is not None:
        return row | {"outcome": "waiting", "reason": why}
    if rung.JUDGED and (why := did_not_last(case, name)) is not None:
        return row | {"outcome": "skipped", "reason": why}
    answer = _ask(rung, context, cfg, spent, expected)
    with atomic_dir(case.work / name) as out:
        row |= _settle(case, name, answer, out)
        row["seconds"] = round(time.monotonic() - began, 2)
        write_json(out / RESULT, row)
    return row


def did_not_last(case: Case, name: str) -> str | None:
    """Why a rung is too weak here, or None: it, or a stronger one, made the champion lately, and
    labels have not doubled since.
    """
    rungs, card = list(case.cfg.repair.rungs), case.context.champion.card
    made, days = card.get("rung"), card.get(DAYS, [])
    if case.context.finishes or made not in rungs or not days:
        return None
    if rungs.index(name) > rungs.index(made):
        return None
    if case.context.loss.labels >= 2 * card.get("repaired_on", np.inf):
        return None
    since = (pd.Timestamp(max(case.dates)) - pd.Timestamp(max(days))).days
    return (
        f"{made} did not last: it made this champion {since} days ago." if since < LASTS else None
    )


def too_few(case: Case) -> str | None:
    """Why the fresh labels can prove nothing yet, or None."""
    judge = case.evidence.fresh.at(~case.evidence.fresh.earlier)
    groups = len(set(judge.groups))
    if groups >= gate.LEAST:
        return None
    return (
        f"{len(judge)} fresh labelled images in {groups} groups to judge with, "
        f"{gate.LEAST} groups needed: label more images of these days."
    )


def _ask(rung: Any, context: Context, cfg: Config, spent: float, expected: float) -> Any:
    """The rung's answer; a rung that fails is no reason not to try the next."""
    limit = cfg.repair.max_seconds
    if spent + expected > limit:
        text = f"{expected:.0f} s expected after {spent:.0f} s spent"
        return Skip(f"{text}: more than repair.max_seconds ({limit:g}).")
    try:
        return rung.propose(context, cfg)
    except HeadwaterError as error:
        return error


def _settle(case: Case, name: str, answer: Any, out: Path) -> Row:
    if isinstance(answer, HeadwaterError):
        return {"outcome": "failed", "reason": str(answer)}
    words = {Skip: "skipped", Stop: "stopped", Ask: "asked"}
    if type(answer) in words:
        return {"outcome": words[type(answer)], "reason": answer.reason}
    return _weigh(case, name, answer, out)


def _weigh(case: Case, name: str, candidate: Candidate, out: Path) -> Row:
    """Judge a candidate; the files of one that passes are kept."""
    lost = case.context.loss.lost
    verdict, frame, own = _judge.judge(case.evidence, candidate, lost, case.level, case.cfg)
    row = {"labels": candidate.labels, "notes": dict(candidate.notes), "judged": dict(verdict)}
    content = write_files(case, name, candidate, frame, own, out)
    (out / model_card.NAME).write_text(described(case, content, verdict, out))
    identity = registry.identify({f: out / f for f in registry.CORE})
    row |= {"candidate": identity, "outcome": "passed", "reason": verdict["reason"]}
    why = registry.rejected(case.paths.registry).get(identity)
    if why is not None:
        row |= {"outcome": "refused", "reason": f"This very model was rejected before ({why})."}
    elif not verdict["passed"]:
        row["outcome"] = "refused"
    if row["outcome"] != "passed":
        for file in out.iterdir():
            file.unlink()
    return row


# ---- files of a candidate ----------------------------------------------------------------------


def write_files(
    case: Case, name: str, candidate: Candidate, frame: pd.DataFrame, own: Array, out: Path
) -> Mapping[str, Any]:
    """Encoder, head, reference, what it trained on, and the card's content, which is returned."""
    champion, folder = case.context.champion, case.context.folder
    if candidate.encoder is None:
        for file in (models.WEIGHTS, models.META):
            (out / file).write_bytes((folder / file).read_bytes())
    else:
        own_keys = ("model_name", "args", "sha256")
        meta = {k: v for k, v in champion.meta.items() if k not in own_keys}
        models.save(candidate.encoder, out, meta)
    _head.save(candidate.head, out)
    reference(candidate.head, frame, own, case.cfg.deploy.reference).to_parquet(
        out / "reference.parquet", index=False
    )
    fresh, seen = case.context.fresh, case.context.seen
    learnt = pd.DataFrame({"sha256": fresh.sha256, "group": fresh.groups})
    seen = pd.concat([seen[["sha256", "group"]], learnt]).drop_duplicates()
    seen.sort_values(["sha256", "group"]).to_parquet(out / "seen.parquet", index=False)
    content = card(case, name, candidate, frame, seen)
    write_json(out / ENTRY, content)
    return content


def reference(head: _head.Head, frame: pd.DataFrame, own: Array, most: int) -> pd.DataFrame:
    """What is normal for the candidate: the judge's fresh images, filled up with old ones.

    One per group, drawn by content hash. Days to come are like the fresh ones.
    """
    prediction, confidence = head.predict(own)
    told = frame.assign(
        embedding=list(own),
        prediction=prediction,
        confidence=confidence,
        correct=prediction == frame["label"].to_numpy(str),
        rank=frame["part"].map({"new": 0, "earlier": 1, "old": 2}),
    )
    drawn = with_groups(told).sort_values(["rank", "sha256"]).drop_duplicates("group").head(most)
    return drawn[list(REFERENCE)].reset_index(drop=True)


def card(
    case: Case, name: str, candidate: Candidate, frame: pd.DataFrame, seen: pd.DataFrame
) -> Mapping[str, Any]:
    """The champion's card with what changed; no time in it, so equal models have equal cards."""
    old = case.context.champion.card
    new = frame[frame["part"] == "new"]
    return {
        **{k: v for k, v in old.items() if k not in ("id", "files")},
        "sources": sorted({*old["sources"], DEPLOYMENT}),
        "images": int(seen["sha256"].nunique()),
        "groups": int(seen["group"].nunique()),
        "classes": len(candidate.head.classes),
        "accuracy": {"value": float(np.mean(new["correct"])), "n": len(new)},
        "rung": name,
        "repaired_from": case.context.champion.id,
        "repaired_on": case.context.loss.labels,
        DAYS: sorted({*old.get(DAYS, []), *case.dates}),
    }


def described(case: Case, content: Mapping[str, Any], verdict: Mapping[str, Any], out: Path) -> str:
    """The model card of a repaired model: what the judge measured, and what it comes from."""
    slices = {"new images": verdict["gain"], "old images": verdict["old"], **verdict["slices"]}
    said = [f"- {name}: {gate.say(found)}" for name, found in slices.items()]
    champion = case.context.champion.id
    limits = [
        f"Repaired from {champion} (rung {content['rung']}) with days {', '.join(case.dates)}: "
        "judged on labelled images of those days and on the champion's held-out ones, no others.",
        f"{verdict['regained']:.0%} of the accuracy that had been lost came back.",
        f"Its features are like the champion's to {verdict['kinship']:.2f} (linear CKA): an index "
        "built with the old ones may need building again.",
    ]
    return model_card.render(
        content,
        read_json(out / models.META),
        verdict["reason"],
        "\n".join(["Accuracy beside the champion's, paired.", "", *said]),
        limits,
        {"repaired from": champion, **content["lineage"]},
    )


def enter(case: Case, row: Row) -> str:
    """Copy a candidate that passed into the registry; doing it again changes nothing."""
    folder = case.work / row["rung"]
    files = {f: folder / f for f in (*registry.CORE, *EXTRA)}
    return registry.add(case.paths.registry, files, read_json(folder / ENTRY))


def context_of(
    cfg: Config,
    paths: Paths,
    model: registry.Model,
    images: tuple[_common.Images, pd.DataFrame],
    feed: tuple[Mapping[str, Any], ...],
    evidence: _judge.Evidence,
    work: Path,
    finishes: str = "",
) -> Context:
    """Measure the loss and the time of one image, and put together what rungs may know."""
    learn, seen = images
    began = time.monotonic()
    table, found = evidence.table, evidence.features
    seconds = (time.monotonic() - began) / max(1, len(table))
    folder = registry.path(paths.registry, model.id)
    none = _common.Loss(0, 0, 0, 0)
    base = Context(model, folder, learn, paths.shards, seen, feed, none, seconds, work, finishes)
    return replace(base, loss=_loss(cfg, base, evidence, found))


def _loss(cfg: Config, base: Context, evidence: _judge.Evidence, own: Array) -> _common.Loss:
    """The champion on all fresh labels, those to learn from too, beside the old images.

    To finish a repair, old are those from before it alone: its own days had not been won back.
    """
    learn = base.fresh.at((base.fresh.labels != "") & ~base.fresh.earlier)
    more = _common.features(base.champion.encoder, learn, base.colour)
    table, head, metric = evidence.table, base.champion.head, cfg.repair.metric
    part = table["part"].to_numpy(str)
    new, before = part == "new", part == "old" if base.finishes else part != "new"
    label, group = table["label"].to_numpy(str), table["group"].to_numpy(str)
    fresh = _judge.score(head, np.r_[own[new], more], np.r_[label[new], learn.labels], metric)
    old = _judge.score(head, own[before], label[before], metric)
    groups = np.r_[group[new], learn.groups]
    return _judge.loss(fresh, groups, old, group[before], cfg.promote.bootstrap, cfg.seed)
