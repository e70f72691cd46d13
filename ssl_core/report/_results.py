"""The page's sections about results: evaluation, promotion, deployment and lineage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..artifacts import read_json, read_lines
from ..config import Paths
from . import _figures
from ._sections import Section, drawing, missing

OURS = "pretrained"
GROUPS = ("many", "medium", "few")
NAMES = {
    "knn": "kNN",
    "linear": "linear probe",
    "few_shot": "few-shot",
    "rankme": "RankMe",
    "alpha_req": "alpha-ReQ",
    "uniformity": "uniformity",
    "tolerance": "tolerance",
}
SHOWN = ("accuracy", "balanced_accuracy", *NAMES)  # metrics of the table
ORIGIN = "source:|unseen:|worst:"
CARD = {"knn": "kNN", "linear": "Linear probe"}
PRODUCTS = (
    "manifest",
    "validation",
    "seed_embeddings",
    "curated",
    "shards",
    "pretrain",
    "embeddings",
    "evaluation",
    "promotion",
)


def results(paths: Paths) -> pd.DataFrame | None:
    """The evaluation's long table, our encoder first; None without it."""
    file = paths.evaluation / "results.parquet"
    if not file.exists():
        return None
    frame = pd.read_parquet(file)
    rank = {n: i for i, n in enumerate(dict.fromkeys([OURS, *frame["encoder"]]))}
    return frame.sort_values("encoder", key=lambda s: s.map(rank), kind="stable")


def pick(frame: pd.DataFrame, encoder: str, measure: str, metric: str = "accuracy") -> Any:
    """One row on the whole test split, or None."""
    mine = frame[
        (frame["encoder"] == encoder)
        & (frame["slice"] == "all")
        & (frame["measure"] == measure)
        & (frame["metric"] == metric)
    ]
    return mine.iloc[0] if len(mine) else None


def _cells(frame: pd.DataFrame) -> tuple[list[str], list[dict[str, Any]]]:
    """Head and rows of the table encoder x (measure, metric) on the whole test split."""
    whole = frame[(frame["slice"] == "all") & frame["metric"].isin(SHOWN)].copy()
    whole["column"] = [
        f"{NAMES.get(m, m)}" + ("" if k in ("accuracy", m) else f" {k.replace('_', ' ')}")
        for m, k in zip(whole["measure"], whole["metric"], strict=True)
    ]
    columns = list(dict.fromkeys(whole["column"]))
    best = {c: whole.loc[whole["column"] == c, "value"].max() for c in columns}
    rows = []
    for encoder, part in whole.groupby("encoder", sort=False):
        values = {r.column: r for r in part.itertuples(index=False)}
        rows.append(
            {
                "encoder": encoder,
                "ours": encoder == OURS,
                "cells": [_cell(values.get(c), best[c]) for c in columns],
            }
        )
    return columns, rows


def _cell(row: Any, best: float) -> dict[str, Any] | None:
    if row is None or pd.isna(row.value):
        return None
    share = "accuracy" in row.metric
    form = (lambda v: f"{100 * v:.1f}") if share else (lambda v: f"{v:.{1 + (abs(v) < 10)}f}")
    spread = "" if pd.isna(row.low) else f"{form(row.low)}–{form(row.high)}"
    return {
        "value": form(row.value) + ("%" if share else ""),
        "spread": spread,
        "best": share and row.value == best,  # what needs no label is no quality by itself
        "n": None if pd.isna(row.n) else int(row.n),
    }


def _slices(frame: pd.DataFrame, wanted: Sequence[str] | None, name: str) -> Any:
    """Linear (or kNN) accuracy on slices; None when there are none.

    By class frequency it is the mean recall of the classes, so that each class counts alike.
    """
    metric = "accuracy" if wanted is None else "balanced_accuracy"
    part = frame[frame["metric"] == metric]
    if wanted is None:
        part = part[part["slice"].str.match(ORIGIN)]
    else:
        part = part[part["slice"].map(_plain).isin(wanted)]
    for measure in ("linear", "knn"):
        mine = part[(part["measure"] == measure) & part["value"].notna()].copy()
        if len(mine):
            mine["slice"] = mine["slice"].map(_plain)
            if wanted is not None:
                order = {g: i for i, g in enumerate(wanted)}
                mine = mine.sort_values("slice", key=lambda s: s.map(order), kind="stable")
            what = "accuracy" if wanted is None else "mean recall"
            figure = _figures.intervals(mine, f"{NAMES[measure]} {what}")
            return drawing(figure, name)
    return None


def _plain(name: str) -> str:
    """``source:apple`` or ``tail=few`` -> the part after the sign; what it is may stay said."""
    kind = name.partition(":")[0]
    for sign in (":", "="):
        name = name.split(sign, 1)[-1]
    said = {"unseen": f"{name}, left out", "worst": f"worst {name}"}
    return said.get(kind, name)


def evaluation(paths: Paths) -> Section:
    """Table with intervals, and values by source and by class frequency."""
    frame = results(paths)
    if frame is None:
        return missing("evaluate")
    columns, rows = _cells(frame)
    return {
        "columns": columns,
        "rows": rows,
        "sources": _slices(frame, None, "sources"),
        "frequency": _slices(frame, GROUPS, "frequency"),
    }


def seeds(paths: Paths) -> list[dict[str, Any]]:
    """Rows of reports/seeds.json, if someone ran `headwater seeds`."""
    file = paths.reports / "seeds.json"
    rows: list[dict[str, Any]] = read_json(file) if file.exists() else []
    return [{**r, "name": r.get("name") or r.get("method")} for r in rows]


def promotion(paths: Paths) -> Section:
    """The gate's decision and the differences it rests on."""
    file = paths.promotion / "decision.json"
    if not file.exists():
        return missing("promote")
    found: Section = read_json(file)
    slices = found.get("slices") or {}
    rows = [("all", found)] + [(k, v) for k, v in slices.items() if isinstance(v, dict)]
    return {**found, "forest": _forest(rows)}


def _forest(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Differences as positions in per cent of a common axis."""
    needed = ("difference", "low", "high")
    usable = [(k, v) for k, v in rows if all(_number(v.get(x)) for x in needed)]
    reach = max((abs(v[x]) for _, v in usable for x in ("low", "high")), default=0) * 1.08 or 1
    return [
        {
            "name": _plain(k),
            "text": f"{100 * v['difference']:+.1f} pp",
            "spread": f"{100 * v['low']:+.1f} to {100 * v['high']:+.1f}",
            "at": 50 + 50 * v["difference"] / reach,
            "from": 50 + 50 * v["low"] / reach,
            "width": 50 * (v["high"] - v["low"]) / reach,
            "tone": "good" if v["low"] > 0 else "bad" if v["high"] < 0 else "flat",
        }
        for k, v in usable
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


def events(paths: Paths, history: pd.DataFrame) -> list[dict[str, str]]:
    """What changed when: the first day a new model served, and dated records of the registry."""
    found = []
    served = history.dropna(subset=["model"])
    changed = served["model"].ne(served["model"].shift())
    for row in served[changed].iloc[1:].itertuples(index=False):
        found.append({"date": str(row.date), "text": f"{str(row.model)[:8]} serves"})
    for record in read_lines(paths.registry / "log.jsonl"):
        date = record.get("date") or record.get("as_of")
        if date and not pd.isna(pd.to_datetime(date, errors="coerce")):
            text = record.get("event") or record.get("action") or "registry"
            found.append({"date": str(date), "text": f"{text} {str(record.get('id', ''))[:8]}"})
    return found


def deployment(paths: Paths, history: pd.DataFrame) -> Section:
    """Timeline and the latest verdicts."""
    if not len(history):
        return {
            "missing": "No day has been judged yet: run `headwater predict` and "
            "`headwater monitor` for a date."
        }
    dated = events(paths, history)
    latest = history.iloc[::-1].head(14).to_dict("records")
    counts = history["verdict"].value_counts()
    return {
        "timeline": drawing(_figures.timeline(history, dated), "timeline"),
        "days": latest,
        "counts": {k: int(counts.get(k, 0)) for k in ("ok", "drift", "harm")},
        "total": len(history),
    }


def lineage(paths: Paths) -> list[dict[str, Any]]:
    """Each product's config hash, inputs and counts."""
    from ..artifacts import LINEAGE, sha256_file

    rows = []
    for name in PRODUCTS:
        file = getattr(paths, name) / LINEAGE
        if file.exists():
            record = read_json(file)
            rows.append(
                {
                    "product": name,
                    "stage": record["stage"],
                    "version": record["version"],
                    "sha256": sha256_file(file),
                    "config": record["config_sha256"],
                    "inputs": record["inputs"],
                    "files": len(record["outputs"]),
                    "counts": {
                        k: v for k, v in record["counts"].items() if not isinstance(v, dict)
                    },
                }
            )
    return rows


def registry(paths: Paths) -> list[dict[str, Any]]:
    """The registry's log, newest first."""
    return read_lines(paths.registry / "log.jsonl")[::-1]


def cards(paths: Paths, history: pd.DataFrame) -> list[dict[str, str]]:
    """The headline numbers."""
    return [c for c in (_champion(paths), *_scores(paths), _watch(history)) if c]


def _champion(paths: Paths) -> dict[str, str]:
    file = paths.registry / "champion.json"
    name = (read_json(file).get("id") if file.exists() else None) or "none yet"
    decision = paths.promotion / "decision.json"
    note = "no decision yet"
    if decision.exists():
        passed = read_json(decision)["promoted"]
        note = "last candidate " + ("promoted" if passed else "turned down")
    return {"label": "Champion", "value": str(name)[:12], "note": note, "tone": "accent"}


def _scores(paths: Paths) -> list[dict[str, str]]:
    frame = results(paths)
    if frame is None:
        return [{"label": "Accuracy", "value": "–", "note": "not evaluated yet", "tone": "flat"}]
    found = []
    for measure in ("linear", "knn"):
        row = pick(frame, OURS, measure)
        if row is not None:
            spread = "" if pd.isna(row.low) else f"95% {row.low:.1%} – {row.high:.1%}"
            found.append(
                {
                    "label": f"{CARD[measure]} accuracy",
                    "value": f"{row.value:.1%}",
                    "note": spread,
                    "tone": "plain",
                }
            )
    measure = "linear" if pick(frame, OURS, "linear") is not None else "knn"
    ours = pick(frame, OURS, measure)
    rest = {e: pick(frame, e, measure) for e in frame["encoder"].unique() if e != OURS}
    gaps = [
        (e, 100 * (ours.value - r.value))
        for e, r in rest.items()
        if r is not None and ours is not None
    ]
    if gaps:
        name, gap = min(gaps, key=lambda g: g[1])
        others = ", ".join(f"{e} {g:+.1f}" for e, g in gaps)
        found.append(
            {
                "label": f"Margin over {name}",
                "value": f"{gap:+.1f} pp",
                "note": others,
                "tone": "good" if gap > 0 else "bad",
            }
        )
    return found


def _watch(history: pd.DataFrame) -> dict[str, str]:
    if not len(history):
        return {"label": "Deployment", "value": "–", "note": "no day judged yet", "tone": "flat"}
    last = history.iloc[-1]
    tone = {"ok": "good", "drift": "warm", "harm": "bad"}.get(last["verdict"], "flat")
    return {
        "label": "Deployment",
        "value": str(last["verdict"]),
        "note": f"on {last['date']}; {len(history)} days judged",
        "tone": tone,
    }
