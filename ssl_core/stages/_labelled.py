"""Labels joined with what the model said: outcomes, groups, and how the images were drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..artifacts import sha256_file, sha256_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..harm._accuracy import Estimate, per_group, stratified
from ..harm._common import Vector
from ._days import Day, labels_file, partition, read_labels, relative, served_by
from ._memo import recall

SAMPLE = "sample.csv"
DESIGN = ("inclusion", "stratum", "weight")  # columns of labels.csv that say how images were drawn
ALONE = ""  # the stratum of labels that came by themselves


@dataclass(frozen=True)
class Labelled:
    """The labelled images of a day: ``frame`` has path (within the day), prediction, label,
    correct (1 or 0), group and stratum; ``sizes`` says how many images each stratum stands for.
    """

    frame: pd.DataFrame
    sizes: dict[str, float]

    def weights(self) -> Vector:
        """Of each image (N,), with mean 1: images of a stratum stand for its size."""
        stratum = self.frame["stratum"]
        share = stratum.map(self.sizes) / stratum.map(stratum.value_counts())
        found: Vector = share.to_numpy(np.float64)
        return found / found.mean() if len(found) else found

    def accuracy(self) -> Estimate:
        """Accuracy with its interval, in which a group counts once."""
        right, stratum = self.column("correct"), self.column("stratum")
        return stratified(right, stratum, self.sizes, self.column("group").astype(str))

    def losses(self) -> Vector:
        """Weighted errors per group (G,), whose mean estimates the error rate."""
        loss = (1 - self.column("correct")) * self.weights()
        return per_group(loss, self.column("group").astype(str))

    def column(self, name: str) -> NDArray[Any]:
        """One column as an array."""
        return self.frame[name].to_numpy()


@dataclass(frozen=True)
class Outcome:
    """What a labelled day says of its model. ``number``: of the day, the model's first is 1.

    ``losses`` as of :class:`Labelled`, ``weight`` the largest; ``value`` and ``error`` of accuracy.
    """

    date: str
    number: int
    losses: Vector
    weight: float
    value: float
    error: float


def requests(paths: Paths, date: str) -> Path:
    """The folder of one day's labelling request."""
    return partition(paths.deploy / "requests", date)


def _inclusion(frame: pd.DataFrame, date: str) -> pd.Series:
    """Chances as numbers, NaN where a label came by itself; ``weight`` is 1 over the chance.

    Raises:
        HeadwaterError: not a chance.
    """
    if "inclusion" in frame:
        given, chance = "inclusion", pd.to_numeric(frame["inclusion"], errors="coerce")
    elif "weight" in frame:
        given, chance = "weight", 1 / pd.to_numeric(frame["weight"], errors="coerce")
    else:
        return pd.Series(np.nan, frame.index)
    bad = (frame[given] != "") & ~((chance > 0) & (chance <= 1))
    if bad.any():
        value = frame.loc[bad, given].iloc[0]
        rule = f"is no {given} of an image in the labels of {date}"
        fix = "inclusion is in (0, 1], weight at least 1; leave it empty for other labels"
        raise HeadwaterError(f"'{value}'", rule, fix)
    return chance


def _asked(paths: Paths, date: str) -> dict[str, int]:
    """Images asked for by stratum, if there was a request."""
    file = requests(paths, date) / SAMPLE
    if not file.exists():
        return {}
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    return {str(k): int(v) for k, v in table["stratum"].value_counts().items()}


def join(
    cfg: Config, paths: Paths, date: str, frame: pd.DataFrame, labels: pd.DataFrame | None
) -> Labelled | None:
    """Labels that are known beside the day's log; None without any.

    A stratum of a request stands for (images asked for) / inclusion, however many of them came
    back labelled. Labels that came by themselves stand for themselves.

    Raises:
        HeadwaterError: an inclusion or weight that is none.
    """
    if labels is None:
        return None
    keep = [c for c in ("prediction", "confidence", "embedding") if c in frame]
    own = frame[keep].assign(path=relative(frame["path"], cfg, date))
    if "group" in frame:
        own["served"] = frame["group"].fillna("")
    found = own.merge(labels[labels["label"] != ""], on="path", how="inner")
    if not len(found):
        return None
    chance = _inclusion(found, date)
    group = found.get("group", pd.Series("", found.index)).fillna("")
    group = group.where(group != "", found.get("served", ""))
    found["group"] = group.where(group != "", found["path"])
    found["correct"] = (found["prediction"] == found["label"]).astype(np.float64)
    named = found.get("stratum", pd.Series("", found.index))
    named = named.where(named != "", chance.map(lambda p: f"{p:.6g}"))
    found["stratum"] = named.where(chance.notna(), ALONE)
    asked, sizes = _asked(paths, date), {}
    for name, part in chance.groupby(found["stratum"], dropna=False):
        count = asked.get(str(name), len(part)) if name != ALONE else len(part)
        sizes[str(name)] = count / float(part.iloc[0]) if name != ALONE else float(count)
    return Labelled(found, sizes)


def _outcome(cfg: Config, paths: Paths, day: Day) -> dict[str, Any] | None:
    """:class:`Outcome` of a day as plain values, but for its number; None without labels."""
    frame = day.read(("path", "prediction", "group"))
    known = join(cfg, paths, day.date, frame, read_labels(cfg, paths, day.date))
    if known is None:
        return None
    found = known.accuracy()
    own = {"losses": known.losses().tolist(), "weight": float(known.weights().max())}
    return {"date": day.date, **own, "value": found.value, "error": found.error}


def history(cfg: Config, paths: Paths, model: str, until: str) -> list[Outcome]:
    """Labelled days of a model up to ``until``, in order.

    Raises:
        HeadwaterError: unusable labels.
    """
    days, found = served_by(paths, model), []
    for day in days:
        labels = labels_file(cfg, paths, day.date)
        asked = requests(paths, day.date) / SAMPLE
        if day.date > until or not labels.exists():
            continue
        drawn = sha256_file(asked) if asked.exists() else ""
        key = sha256_json([day.date, day.digest, sha256_file(labels), drawn, cfg.deploy.incoming])
        plain = recall(paths.runs / "outcomes", key, partial(_outcome, cfg, paths, day))
        if plain is not None:
            number = (pd.Timestamp(day.date) - pd.Timestamp(days[0].date)).days + 1
            losses = np.array(plain.pop("losses"), np.float64)
            found.append(Outcome(losses=losses, number=number, **plain))
    return found
