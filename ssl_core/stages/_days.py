"""The files of deployment, by day: prediction logs, labels, and each model's reference."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date as Date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..artifacts import sha256_file, sha256_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..types import Array
from ._memo import recall

LOG, REJECTS = "part-0.parquet", "rejects.parquet"


def partition(folder: Path, date: str) -> Path:
    """The folder of one day below predictions/ or monitor/.

    Raises:
        HeadwaterError: ``date`` is not YYYY-MM-DD.
    """
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date, re.ASCII):
            raise ValueError  # fromisoformat takes weeks and days without dashes, too
        Date.fromisoformat(date)
    except ValueError:
        rule = "is not a day written YYYY-MM-DD"
        raise HeadwaterError(f"date '{date}'", rule, "e.g. 2026-03-15") from None
    return folder / f"date={date}"


def relative(names: pd.Series, cfg: Config, date: str) -> pd.Series:
    """Paths with or without the incoming folder and the day become paths within the day."""
    prefix = f"^(?:{re.escape(cfg.deploy.incoming.strip('/'))}/)?(?:{re.escape(date)}/)?"
    return names.str.replace(prefix, "", regex=True)


def grouping(pattern: str) -> Callable[[pd.Series], pd.Series]:
    """From paths within the day to names of groups: what ``pattern`` captures, "" elsewhere.

    Raises:
        HeadwaterError: not a regular expression with one group.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        rule = f"is not a regular expression ({error})"
        raise HeadwaterError(f"deploy.group '{pattern}'", rule, "e.g. ^([^_]+)_") from None
    if pattern and found.groups != 1:
        rule = f"captures {found.groups} parts"
        raise HeadwaterError(f"deploy.group '{pattern}'", rule, "capture one, e.g. ^([^_]+)_")

    def name(paths: pd.Series) -> pd.Series:
        if not pattern:
            return pd.Series("", paths.index, dtype="str")
        return paths.str.extract(found, expand=False).fillna("").astype("str")

    return name


def labels_file(cfg: Config, paths: Paths, date: str) -> Path:
    """Where labels of one day come in."""
    return paths.root / cfg.deploy.labels / f"{date}.csv"


def read_labels(cfg: Config, paths: Paths, date: str) -> pd.DataFrame | None:
    """labels/<date>.csv with ``path`` relative to the day's folder, or None if it has not come.

    Raises:
        HeadwaterError: no columns path and label, or two labels for one image.
    """
    file = labels_file(cfg, paths, date)
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


def reference_file(paths: Paths, model: str) -> Path:
    """The registry's record of what is normal for one model.

    Raises:
        HeadwaterError: the model is not in the registry.
    """
    file = paths.registry / "models" / model / "reference.parquet"
    if not re.fullmatch(r"[\w.-]+", model) or not file.exists():
        rule = "made the predictions and is not in the registry"
        raise HeadwaterError(f"model '{model}'", rule, "run `dvc checkout`, or predict again")
    return file


def read_reference(paths: Paths, model: str) -> pd.DataFrame:
    """Held-out images with what the model said of them.

    Raises:
        HeadwaterError: the model is not in the registry.
    """
    frame = pd.read_parquet(reference_file(paths, model))
    if "share" in frame:
        return frame
    # Written before groups were told: each image speaks for itself.
    return frame.assign(
        share=frame["correct"].astype(float), images=frame["correct"].notna().astype(int)
    )


def read_predictions(paths: Paths, date: str) -> tuple[pd.DataFrame, int]:
    """The day's prediction log and how many inputs were rejected.

    Raises:
        HeadwaterError: the day was not predicted, or by more than one model.
    """
    folder = partition(paths.predictions, date)
    file = folder / LOG
    if not file.exists():
        raise HeadwaterError(file, "does not exist", f"run `headwater predict {date}` first")
    frame = pd.read_parquet(file)
    if frame["model"].nunique() > 1:
        rule = f"mixes models {', '.join(sorted(frame['model'].unique()))}"
        raise HeadwaterError(file, rule, f"run `headwater predict {date}` again")
    return frame, count_rejects(folder)


def count_rejects(folder: Path) -> int:
    """Inputs of one day that could not be read."""
    import pyarrow.parquet as pq

    file = folder / REJECTS
    return int(pq.read_metadata(file).num_rows) if file.exists() else 0


def features(frame: pd.DataFrame) -> Array:
    """Column ``embedding`` as (N, D)."""
    return np.stack([np.asarray(v, np.float32) for v in frame["embedding"]])


@dataclass(frozen=True)
class Day:
    """A day that one model served; ``digest`` is of all that detectors may look at."""

    date: str
    folder: Path
    digest: str

    def read(self, columns: tuple[str, ...]) -> pd.DataFrame:
        """The log's images with these columns, in its order; those it lacks are left out."""
        import pyarrow.parquet as pq

        file = self.folder / LOG
        known = [c for c in columns if c in pq.read_schema(file).names]
        return pd.read_parquet(file, columns=known)


@lru_cache(maxsize=4096)
def _about(memo: Path, file: Path, stamp: tuple[int, int, int]) -> tuple[str | None, str]:
    """Who made a log, and its hash: read once as long as the file is the same.

    A verdict asks for all days several times, and a year of logs holds gigabytes of embeddings.
    """

    def read() -> list[str | None]:
        names = pd.read_parquet(file, columns=["model"])["model"]
        return [str(names.iloc[0]) if len(names) else None, sha256_file(file)]

    model, digest = recall(memo, sha256_json([str(file), *stamp]), read)
    return model, digest


def served_by(paths: Paths, model: str) -> list[Day]:
    """The days with images on which ``model`` served, in order."""
    found = []
    for folder in sorted(paths.predictions.glob("date=*")):
        file = folder / LOG
        if not file.exists():
            continue
        now = file.stat()
        stamp = (now.st_ino, now.st_size, now.st_mtime_ns)
        served, digest = _about(paths.runs / "digests", file, stamp)
        if served == model:
            day = folder.name.removeprefix("date=")
            found.append(Day(day, folder, f"{digest}:{count_rejects(folder)}"))
    return found
