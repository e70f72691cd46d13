"""Deployment images for a repair: some to learn from, others, of other groups, to judge with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import forgotten, registry
from ..artifacts import read_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..parallel import ordered_map
from ..registry import Model
from ..repair._common import Images, fraction
from . import collect, predict
from ._days import labels_file, partition

DAYS = "days"  # key of a repaired model's card: the days it has learned from


@dataclass(frozen=True)
class Fresh:
    """Both sides, and how the rows came to them (``counts``)."""

    learn: Images
    judge: Images
    counts: dict[str, int]


def rows(cfg: Config, paths: Paths, dates: list[str], earlier: list[str]) -> pd.DataFrame:
    """One row per image of the days: ref, sha256, label, group, earlier.

    An image without a group is one by itself. The same image on several days is one row, with
    the label that came first.

    Raises:
        HeadwaterError: a day without predictions.
    """
    kept = [d for d in earlier if d not in dates and partition(paths.predictions, d).exists()]
    parts = [collect.rows_of(cfg, paths, d).assign(earlier=False) for d in sorted(set(dates))]
    parts += [collect.rows_of(cfg, paths, d).assign(earlier=True) for d in sorted(kept)]
    frame = pd.concat(parts, ignore_index=True)
    frame["group"] = frame["group"].where(frame["group"] != "", frame["sha256"])
    order = (frame["label"] == "").to_numpy()
    return frame.iloc[np.argsort(order, kind="stable")].drop_duplicates("sha256")


def seen(paths: Paths, model: str) -> pd.DataFrame:
    """What a model trained on: sha256 and group."""
    return pd.read_parquet(registry.path(paths.registry, model) / "seen.parquet")


def _limit(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """Forget labels beyond the budget, by hash; those of earlier repairs are paid for."""
    if not most:
        return frame
    known = frame[(frame["label"] != "") & ~frame["earlier"]]
    order = known["sha256"].map(lambda s: fraction(f"label:{s}")).sort_values().index
    frame = frame.copy()
    frame.loc[order[most:], "label"] = ""
    return frame


def split(
    frame: pd.DataFrame, trained_on: pd.DataFrame, tested_on: set[str], cfg: Config
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Rows to learn from, rows to judge with, and counts.

    The side of a group follows from its name alone, so it never changes sides from one repair to
    the next. Nothing is learned from groups of the old test images; no judge is an image that
    the champion trained on (earlier days' images to learn from are the exception: they are
    learned from again).
    """
    frame = _limit(frame, cfg.repair.max_labels)
    side = frame["group"].map(lambda g: fraction(f"judge:{cfg.seed}:{g}") < cfg.repair.held_out)
    known = frame["sha256"].isin(trained_on["sha256"])
    judge = frame[side & (frame["label"] != "") & ~known]
    own = ~side & ~frame["group"].isin(tested_on)
    learn = frame[own & (~known | frame["earlier"])]
    counts = {
        "images": len(frame),
        "learn": len(learn),
        "learn_labels": int((learn["label"] != "").sum()),
        "judge": len(judge),
        "kept_apart": len(frame) - len(learn) - len(judge),
    }
    return learn, judge, counts


def load(frame: pd.DataFrame, cfg: Config, paths: Paths, model: Model) -> Images:
    """Decode as in service, checked against the prediction log.

    Raises:
        HeadwaterError: an image changed or cannot be read any more.
    """
    side, size = int(model.card["max_side"]), int(model.meta["image_size"])
    limit, channels, root = cfg.data.max_pixels, model.encoder.channels, paths.root

    def one(row: Any) -> Any:
        found = predict.read(row.ref, root, limit, side, size, channels)
        if found.pixels is None or found.sha256 != row.sha256:
            rule = f"is not the image that was predicted on ({found.reason or 'changed'})"
            raise HeadwaterError(row.ref, rule, "restore the file, or predict this day again")
        return found.pixels

    threads = os.cpu_count() or 1
    parts = list(ordered_map(one, frame.itertuples(index=False), threads, ahead=4 * threads))
    shape = (0, channels, size, size)
    return Images(
        np.stack(parts) if parts else np.zeros(shape, np.uint8),
        frame["label"].to_numpy(str),
        frame["group"].to_numpy(str),
        frame["sha256"].to_numpy(str),
        frame["earlier"].to_numpy(bool),
    )


def gather(cfg: Config, paths: Paths, dates: list[str], model: Model) -> Fresh:
    """Both sides of the days' images, and of the days the champion was repaired with.

    Raises:
        HeadwaterError: a day without predictions, or an image that changed.
    """
    earlier = list(model.card.get(DAYS, []))
    index = pd.read_parquet(paths.shards / "index.parquet")
    tested = set(index.loc[index["split"] == "test", "group"])
    frame = rows(cfg, paths, dates, earlier)
    frame = frame[~frame["sha256"].isin(forgotten.read(paths.forgotten))]
    learn, judge, counts = split(frame, seen(paths, model.id), tested, cfg)
    missing = [d for d in earlier if not partition(paths.predictions, d).exists()]
    counts["earlier_days_gone"] = len(missing)
    return Fresh(load(learn, cfg, paths, model), load(judge, cfg, paths, model), counts)


def feed(paths: Paths, dates: list[str]) -> tuple[dict[str, Any], ...]:
    """What monitoring says of each day's input; days that were not monitored are left out."""
    files = ((d, partition(paths.monitor, d) / "verdict.json") for d in sorted(set(dates)))
    return tuple({"date": d, **read_json(f)["inputs"]} for d, f in files if f.exists())


def harmed(paths: Paths, dates: list[str]) -> bool:
    """Whether monitoring says of any of these days that harm is proven."""
    files = (partition(paths.monitor, d) / "verdict.json" for d in sorted(set(dates)))
    return any(bool(read_json(f)["harm"]) for f in files if f.exists())


def source_files(cfg: Config, paths: Paths, dates: list[str]) -> dict[str, Path]:
    """Prediction logs and labels of the days, for lineage."""
    found = {}
    for date in sorted(set(dates)):
        labels = labels_file(cfg, paths, date)
        found[f"predictions/{date}"] = partition(paths.predictions, date) / "part-0.parquet"
        if labels.exists():
            found[f"labels/{date}"] = labels
    return found
