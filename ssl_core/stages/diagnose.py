"""What changed on one day: the cause in words, numbers and pictures, or that it is unknown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import models
from ..artifacts import atomic_dir, read_json, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..harm._diagnosis import Ground, Hypothesis, Side, diagnose
from ..harm._quality import MEASURES
from ..progress import Reporter
from ..report import _images
from . import predict
from ._days import (
    LOG,
    features,
    partition,
    read_labels,
    read_predictions,
    read_reference,
    reference_file,
    relative,
)
from ._estimates import folder

DIAGNOSIS, GRID = "diagnosis.json", "images.png"
SHOWN, ROW = 16, 8  # images most responsible, and of them in a row
SLICES = 8
OWN = {"path", "sha256", "embedding", "prediction", "confidence", "model", "label", "group"}


def _places(shards: Path, keys: list[str]) -> list[bytes] | None:
    """Stored files by sha256; None if any is missing."""
    if not (shards / "index.parquet").exists():
        return None
    table = pd.read_parquet(shards / "index.parquet").set_index("key")
    if not set(keys) <= set(table.index):
        return None
    found = []
    columns = (table.loc[keys, name].tolist() for name in ("shard", "offset", "size"))
    for shard, offset, size in zip(*columns, strict=True):
        with (shards / str(shard)).open("rb") as stream:
            found.append(os.pread(stream.fileno(), int(size), int(offset)))
    return found


def reference_quality(
    cfg: Config, paths: Paths, model: str, reference: pd.DataFrame
) -> NDArray[np.float64] | None:
    """(N, 4) of ``MEASURES``: from the registry, or measured on the shards as for a day.

    None where neither has them: then a fault cannot be told.
    """
    if set(MEASURES) <= set(reference.columns):
        return reference[list(MEASURES)].to_numpy(np.float64)
    stored = _places(paths.shards, reference["sha256"].astype(str).tolist())
    own = paths.registry / "models" / model
    if stored is None or not (own / models.META).exists():
        return None
    size = int(read_json(own / models.META)["image_size"])
    side = int(read_json(own / "card.json")["max_side"])
    about = read_json(paths.shards / "index.json")
    seen = [
        predict.look("", data, cfg.data.max_pixels, side, size, int(about.get("channels", 3)))
        for data in stored
    ]
    if any(s.pixels is None for s in seen):
        return None
    return predict.quality(seen)[list(MEASURES)].to_numpy(np.float64)


def metadata(cfg: Config, paths: Paths, date: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Columns that may explain a change: folder, file type, and those of the log and labels.csv."""
    inside = relative(frame["path"], cfg, date)
    found: dict[str, Any] = {
        "folder": folder(inside),
        "type": inside.str.rpartition(".")[2].str.lower().to_numpy(str),
    }
    skip = OWN | set(MEASURES) | {"bytes"}
    for name in (c for c in frame.columns if c not in skip):
        found[name] = frame[name].fillna("").to_numpy(str)
    labels = read_labels(cfg, paths, date)
    if labels is not None:
        known = labels.set_index("path")
        for name in known.columns.difference([*OWN, "inclusion", "stratum", "weight"]):
            found[name] = inside.map(known[name]).fillna("").to_numpy(str)
    return found


def sides(cfg: Config, paths: Paths, date: str, frame: pd.DataFrame) -> tuple[Side, Side]:
    """The reference and the day."""
    model = str(frame["model"].iloc[0])
    reference = read_reference(paths, model)
    quality = None
    if set(MEASURES) <= set(frame.columns):
        quality = frame[list(MEASURES)].to_numpy(np.float64)
    label = reference["label"].fillna("").to_numpy(str) if "label" in reference else None
    was = None if quality is None else reference_quality(cfg, paths, model, reference)
    old = Side(
        features(reference),
        reference["prediction"].to_numpy(str),
        reference["confidence"].to_numpy(np.float64),
        was,
        {},
        label,
    )
    new = Side(
        features(frame),
        frame["prediction"].to_numpy(str),
        frame["confidence"].to_numpy(np.float64),
        quality,
        metadata(cfg, paths, date, frame),
    )
    return old, new


# ---- in words ----------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _label_shift(e: dict[str, Any]) -> str:
    moved = "; ".join(
        f"{c['class']} {_percent(c['reference'])} → {_percent(c['share'])}"
        for c in e["classes"][:3]
    )
    return f"Classes come in other shares and look as before ({moved})."


def _new_class(e: dict[str, Any]) -> str:
    return (
        f"About {_percent(e['share'])} of the images are unlike all that was known and alike "
        f"among themselves; the rest is as before. The model names them with a confidence of "
        f"{_percent(e['confidence'])} (usually {_percent(e['reference_confidence'])})."
    )


def _fault(e: dict[str, Any]) -> str:
    return (
        f"{_percent(e['shares'][e['fault']])} of the images are {e['fault']} beyond what "
        f"{_percent(1 - e['expected'])} of the reference shows: check the camera and the feed."
    )


def _confounder(e: dict[str, Any]) -> str:
    return (
        f"The images with {e['column']} = {e['value']} ({_percent(e['share'])} of the day) are "
        f"what changed; without them {_percent(e['explained'])} of the change is gone."
    )


def _covariate(e: dict[str, Any]) -> str:
    return (
        f"The images look different (told from the reference with AUC {e['auc']:.2f}), and neither "
        f"classes, a new class nor a fault of the camera explains it."
    )


SAY = {
    "label shift": _label_shift,
    "new class": _new_class,
    "quality fault": _fault,
    "confounder": _confounder,
    "covariate shift": _covariate,
}


def say(cause: str, ground: Ground | None, found: list[Hypothesis]) -> str:
    """The diagnosis in a few sentences."""
    if ground is None:
        return "Too few images to say anything."
    if cause == "none":
        return f"No change to be seen (AUC {ground.auc:.2f} against the reference)."
    by = {h.cause: h for h in found}
    place = by["confounder"]
    if cause == "unknown":
        best = ", ".join(f"{h.cause} {h.score:.2f}" for h in found[:3])
        text = f"Something changed (AUC {ground.auc:.2f}), but no cause stands out ({best})."
    else:
        text = f"{cause[0].upper()}{cause[1:]}. {SAY[cause](by[cause].evidence)}"
    if cause != "confounder" and place.score >= 0.5:
        text += f" It is seen where {place.evidence['column']} = {place.evidence['value']}."
    return text


# ---- what is responsible -----------------------------------------------------------------------


def slices(ground: Ground) -> list[dict[str, Any]]:
    """The classes and places whose images are most unlike the reference, with their share."""
    columns = {"named": ground.current.named, **ground.current.metadata}
    rows: list[dict[str, Any]] = []
    for column, values in sorted(columns.items()):
        for name in np.unique(values[values != ""]).tolist():
            mask = values == name
            if mask.sum() >= 8 and not mask.all():
                rows.append(
                    {
                        "slice": f"{column}:{name}",
                        "share": float(mask.mean()),
                        "unlike": float(ground.scores[mask].mean()),
                        "rest": float(ground.scores[~mask].mean()),
                    }
                )
    return sorted(rows, key=lambda r: (r["rest"] - r["unlike"], r["slice"]))[:SLICES]


def responsible(cause: str, ground: Ground, found: list[Hypothesis]) -> NDArray[np.int64]:
    """Rows of the images that bear most witness to the cause, else the most unlike ones."""
    weight = next((h.images for h in found if h.cause == cause), ground.scores)
    return np.lexsort((-ground.scores, -weight))[:SHOWN]


def grid(refs: list[str], root: Path) -> bytes:
    """The images as one PNG; what cannot be read is blank."""
    blank = np.full((_images.SIDE, _images.SIDE, 3), 235, np.uint8)
    cells = [_images.from_disk(ref, root) for ref in refs]
    shown = [blank if c is None else c for c in cells]
    rows = [shown[i : i + ROW] for i in range(0, len(shown), ROW)]
    return _images.sheet(rows, [[None] * len(r) for r in rows])


def examine(cfg: Config, paths: Paths, date: str) -> dict[str, Any]:
    """The diagnosis of one day, without writing it.

    Raises:
        HeadwaterError: see :func:`run`.
    """
    frame, rejected = read_predictions(paths, date)
    if not len(frame):
        rule = f"has no readable image ({rejected} were rejected)"
        raise HeadwaterError(date, rule, "look at rejects.parquet of this day, and at the feed")
    cause, ground, found = diagnose(*sides(cfg, paths, date, frame))
    base = {
        "date": date,
        "model": str(frame["model"].iloc[0]),
        "cause": cause,
        "text": say(cause, ground, found),
        "rejected": rejected,
        "hypotheses": [{"cause": h.cause, "score": h.score, "evidence": h.evidence} for h in found],
    }
    if ground is None:
        return {**base, "auc": None, "change": None, "slices": [], "images": []}
    rows = responsible(cause, ground, found) if cause != "none" else np.zeros(0, np.int64)
    images = [
        {
            "path": str(frame["path"].iloc[i]),
            "prediction": str(frame["prediction"].iloc[i]),
            "confidence": float(frame["confidence"].iloc[i]),
            "unlike": float(ground.scores[i]),
        }
        for i in rows
    ]
    about = {"auc": ground.auc, "change": ground.change}
    return {**base, **about, "slices": slices(ground), "images": images}


def run(cfg: Config, paths: Paths, date: str) -> dict[str, Any]:
    """Write diagnosis/date=<date>/diagnosis.json, with images.png of what is most responsible.

    Raises:
        HeadwaterError: no predictions for this day, none readable, or an unknown model.
    """
    with Reporter("diagnose") as report:
        found = examine(cfg, paths, date)
        sources = {
            "predictions": partition(paths.predictions, date) / LOG,
            "reference": reference_file(paths, found["model"]),
        }
        with atomic_dir(partition(paths.deploy / "diagnosis", date)) as out:
            write_json(out / DIAGNOSIS, found)
            if found["images"]:
                refs = [i["path"] for i in found["images"]]
                (out / GRID).write_bytes(grid(refs, paths.root))
            write_lineage(out, "diagnose", {"date": date}, sources, {"cause": found["cause"]})
        report.log(f"{date}: {found['text']}")
    return found
