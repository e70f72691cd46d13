"""One day of deployment against the reference of the model that served it.

Detectors say whether the images changed; only labels can say whether that did harm. The two are
kept apart: retraining on every change would spend much and mend nothing.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import plugins
from ..artifacts import atomic_dir, read_json, write_json, write_lineage
from ..config import Config, Deploy, Paths
from ..errors import HeadwaterError
from ..progress import Reporter
from ..types import Array

LEAST = 8  # images below which no detector is asked
Z = 1.959964  # 95 % intervals
VERDICT = "verdict.json"


def partition(folder: Path, date: str) -> Path:
    """The folder of one day below predictions/ or monitor/.

    Raises:
        HeadwaterError: ``date`` is not YYYY-MM-DD.
    """
    shaped = re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)
    if not shaped or pd.isna(pd.to_datetime(date, errors="coerce")):
        raise HeadwaterError(f"date '{date}'", "is not a day written YYYY-MM-DD", "e.g. 2026-03-15")
    return folder / f"date={date}"


def wilson(hits: float, n: float) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    p, z2 = hits / n, Z * Z
    centre, spread = p + z2 / (2 * n), Z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return (max(0.0, (centre - spread) / (1 + z2 / n)), min(1.0, (centre + spread) / (1 + z2 / n)))


def newcombe(hits: float, n: float, hits0: float, n0: float) -> tuple[float, float]:
    """95 % interval of p - p0 for independent samples (Newcombe 1998, method 10)."""
    (low, high), (low0, high0) = wilson(hits, n), wilson(hits0, n0)
    p, p0 = hits / n, hits0 / n0
    down = ((p - low) ** 2 + (high0 - p0) ** 2) ** 0.5
    up = ((high - p) ** 2 + (p0 - low0) ** 2) ** 0.5
    return p - p0 - down, p - p0 + up


def read_labels(cfg: Config, paths: Paths, date: str) -> pd.DataFrame | None:
    """labels/<date>.csv with ``path`` relative to the day's folder, or None if it has not come.

    Raises:
        HeadwaterError: no columns path and label, or two labels for one image.
    """
    file = paths.root / cfg.deploy.labels / f"{date}.csv"
    if not file.exists():
        return None
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    if not {"path", "label"} <= set(frame.columns):
        rule = f"has columns {', '.join(frame.columns)}"
        raise HeadwaterError(file, rule, "it needs path and label (and may have group)")
    frame["path"] = relative(frame["path"], cfg, date)
    frame = frame.drop_duplicates()
    if frame["path"].duplicated().any():
        name = frame.loc[frame["path"].duplicated(), "path"].iloc[0]
        raise HeadwaterError(file, f"gives {name} more than one label", "keep one line per image")
    return frame


def relative(names: pd.Series, cfg: Config, date: str) -> pd.Series:
    """Paths with or without the incoming folder and the day become paths within the day."""
    prefix = f"^(?:{re.escape(cfg.deploy.incoming.strip('/'))}/)?(?:{re.escape(date)}/)?"
    return names.str.replace(prefix, "", regex=True)


def read_reference(paths: Paths, model: str) -> pd.DataFrame:
    """The registry's record of what is normal for one model.

    Raises:
        HeadwaterError: the model is not in the registry.
    """
    file = paths.registry / "models" / model / "reference.parquet"
    if not re.fullmatch(r"[\w.-]+", model) or not file.exists():
        rule = "made the predictions and is not in the registry"
        raise HeadwaterError(f"model '{model}'", rule, "run `dvc checkout`, or predict again")
    return pd.read_parquet(file)


def read_predictions(paths: Paths, date: str) -> tuple[pd.DataFrame, int]:
    """The day's prediction log and how many inputs were rejected.

    Raises:
        HeadwaterError: the day was not predicted, or by more than one model.
    """
    folder = partition(paths.predictions, date)
    file = folder / "part-0.parquet"
    if not file.exists():
        raise HeadwaterError(file, "does not exist", f"run `headwater predict {date}` first")
    frame = pd.read_parquet(file)
    if frame["model"].nunique() > 1:
        rule = f"mixes models {', '.join(sorted(frame['model'].unique()))}"
        raise HeadwaterError(file, rule, f"run `headwater predict {date}` again")
    rejects = folder / "rejects.parquet"
    return frame, len(pd.read_parquet(rejects)) if rejects.exists() else 0


def features(frame: pd.DataFrame) -> Array:
    """Column ``embedding`` as (N, D)."""
    return np.stack([np.asarray(v, np.float32) for v in frame["embedding"]])


def threshold(deploy: Deploy) -> float:
    """The p-value at which one detector raises the alarm (Bonferroni over detectors).

    Raises:
        HeadwaterError: no permutation test of this size can reach it.
    """
    level = deploy.alpha / max(1, len(deploy.detectors))
    if deploy.detectors and 1 / (1 + deploy.permutations) > level:
        rule = f"cannot reach a p-value of {level:g} (alpha over {len(deploy.detectors)} detectors)"
        fix = f"set it to at least {int(np.ceil(1 / level)) - 1}"
        raise HeadwaterError(f"deploy.permutations = {deploy.permutations}", rule, fix)
    return level


def detect(cfg: Config, date: str, reference: Array, current: Array) -> dict[str, Any]:
    """Every detector's score; each has its own stream of random numbers from (seed, date, name)."""
    scores = {}
    for name in cfg.deploy.detectors:
        seed = int(hashlib.sha256(f"{cfg.seed}:{date}:{name}".encode()).hexdigest()[:16], 16)
        rng = np.random.default_rng(seed)
        found = plugins.load("drift", name).score(reference, current, rng, cfg.deploy.permutations)
        scores[name] = {
            "statistic": found.statistic,
            "p_value": found.p_value,
            "n": found.n,
            "details": found.details,
        }
    return scores


def accuracy(
    cfg: Config,
    frame: pd.DataFrame,
    labels: pd.DataFrame | None,
    reference: pd.DataFrame,
    date: str,
) -> dict[str, Any] | None:
    """Accuracy where labels have come, beside the reference's; None without any label.

    Images of one group are not independent evidence: where labels.csv has ``group``, intervals
    count groups, not images. A label the model does not know counts as an error.
    """
    if labels is None:
        return None
    own = frame[["path", "prediction"]].assign(path=relative(frame["path"], cfg, date))
    joined = own.merge(labels[labels["label"] != ""], on="path", how="inner")
    known = reference["correct"].dropna().astype(float)
    if not len(joined) or not len(known):
        return None
    value = float((joined["prediction"] == joined["label"]).mean())
    group = joined["group"] if "group" in joined else pd.Series("", index=joined.index)
    n = int(group.where(group != "", joined["path"]).nunique())
    low, high = wilson(value * n, n)
    down, up = newcombe(value * n, n, float(known.sum()), len(known))
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": len(joined),
        "groups": n,
        "reference": float(known.mean()),
        "reference_n": len(known),
        "difference": value - float(known.mean()),
        "difference_low": down,
        "difference_high": up,
    }


def harmed(deploy: Deploy, found: dict[str, Any] | None) -> bool:
    """Whether labels prove a loss of more than ``min_drop``."""
    enough = found is not None and found["groups"] >= deploy.min_labels
    return bool(enough and found and found["difference_high"] < -deploy.min_drop)


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


def _say_inputs(found: dict[str, Any]) -> str:
    if not found["broken"]:
        return ""
    usable = found["images"] - found["rejected"]
    return (
        f"Check the feed: {found['rejected']} of {found['images']} inputs were unreadable and "
        f"{found['distinct']} of {usable} images are distinct. "
    )


def _say_drift(scores: dict[str, Any], drift: bool, level: float, n: int) -> str:
    if not scores:
        return f"{n} images are too few to test ({LEAST} needed)."
    parts = ", ".join(f"{name} p = {s['p_value']:.3g}" for name, s in scores.items())
    verb = "differ from" if drift else "look like"
    return f"{n} images {verb} the reference ({parts}; alarm at {level:.3g})."


def _say_harm(deploy: Deploy, found: dict[str, Any] | None) -> str:
    if found is None:
        return "No labels yet, so harm is unknown."
    text = (
        f"Accuracy is {found['value']:.1%} on {found['n']} labels against {found['reference']:.1%} "
        f"on the reference (difference {found['difference']:+.1%}, 95% interval "
        f"{found['difference_low']:+.1%} to {found['difference_high']:+.1%}): "
    )
    if found["groups"] < deploy.min_labels:
        return text + f"too few to judge ({deploy.min_labels} needed)."
    proven = "a loss above" if harmed(deploy, found) else "no proven loss above"
    return text + f"{proven} {deploy.min_drop:.1%}."


def judge(cfg: Config, paths: Paths, date: str) -> dict[str, Any]:
    """The verdict on one day, without writing it."""
    level = threshold(cfg.deploy)
    frame, rejected = read_predictions(paths, date)
    found = inputs(cfg, frame, rejected)
    if not len(frame):
        reason = _say_inputs(found) + "Nothing was predicted."
        return {
            "date": date,
            "model": None,
            "scores": {},
            "accuracy": None,
            "inputs": found,
            "confidence": None,
            "drift": False,
            "harm": False,
            "verdict": "ok",
            "reason": reason,
            "alarm_at": level,
        }
    model = str(frame["model"].iloc[0])
    reference = read_reference(paths, model)
    enough = min(len(frame), len(reference)) >= LEAST
    scores = detect(cfg, date, features(reference), features(frame)) if enough else {}
    drift = any(s["p_value"] <= level for s in scores.values())
    right = accuracy(cfg, frame, read_labels(cfg, paths, date), reference, date)
    harm = harmed(cfg.deploy, right)
    sure, was = float(frame["confidence"].mean()), float(reference["confidence"].mean())
    return {
        "date": date,
        "model": model,
        "scores": scores,
        "accuracy": right,
        "inputs": found,
        "confidence": {"value": sure, "reference": was, "drop": was - sure},
        "drift": drift,
        "harm": harm,
        "verdict": "harm" if harm else "drift" if drift else "ok",
        "reason": _say_inputs(found)
        + _say_drift(scores, drift, level, len(frame))
        + " "
        + _say_harm(cfg.deploy, right),
        "alarm_at": level,
    }


def run(cfg: Config, paths: Paths, date: str) -> dict[str, Any]:
    """Write monitor/date=<date>/verdict.json; run again when labels have come.

    Raises:
        HeadwaterError: no predictions for this day, unknown model, unusable labels or settings.
    """
    with Reporter("monitor") as report:
        verdict = judge(cfg, paths, date)
        sources = {"predictions": partition(paths.predictions, date) / "part-0.parquet"}
        labels = paths.root / cfg.deploy.labels / f"{date}.csv"
        if labels.exists():
            sources["labels"] = labels
        if verdict["model"]:
            name = verdict["model"]
            sources["reference"] = paths.registry / "models" / name / "reference.parquet"
        with atomic_dir(partition(paths.monitor, date)) as out:
            write_json(out / VERDICT, verdict)
            settings = cfg.section("deploy") | {"seed": cfg.seed}
            write_lineage(out, "monitor", settings, sources, verdict["inputs"])
        report.log(f"{date}: {verdict['verdict']}. {verdict['reason']}")
    return verdict


def _flat(verdict: dict[str, Any]) -> dict[str, Any]:
    row = {k: verdict.get(k) for k in ("date", "model", "verdict", "drift", "harm", "reason")}
    row["alarm_at"] = verdict.get("alarm_at")
    right = verdict.get("accuracy") or {}
    row |= {k: right.get(k) for k in ("low", "high", "reference")}
    row |= {"accuracy": right.get("value"), "labels": right.get("n")}
    row["confidence"] = (verdict.get("confidence") or {}).get("value")
    row |= {k: (verdict.get("inputs") or {}).get(k) for k in ("images", "rejected", "broken")}
    for name, score in verdict.get("scores", {}).items():
        row |= {f"p_{name}": score["p_value"], f"statistic_{name}": score["statistic"]}
    return row


def history(paths: Paths) -> pd.DataFrame:
    """All verdicts by date, one row each: date, model, verdict, reason, accuracy, low, high,
    reference, labels, confidence, images, rejected, and p_<detector>, statistic_<detector>.
    """
    files = sorted(paths.monitor.glob(f"date=*/{VERDICT}"))
    return pd.DataFrame([_flat(read_json(f)) for f in files])
