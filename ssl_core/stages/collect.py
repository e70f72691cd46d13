"""Deployment images become an ordinary source folder, ready for the next training run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from .. import forgotten, images
from ..artifacts import atomic_dir, sha256_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..progress import Reporter
from ..shards import DEPLOYMENT
from ._days import partition, read_labels, read_predictions, relative

COLUMNS = ["path", "label", "group", "source", "captured_at"]


def target(paths: Paths, key: str) -> Path:
    """data/collected/<key>.

    Raises:
        HeadwaterError: the key could leave that folder or hide in it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", key) or ".." in key:
        rule = "is not a plain name of letters, digits, '-', '_' and '.'"
        raise HeadwaterError(f"key '{key}'", rule, "use e.g. 2026-03-15")
    return paths.collected / key


def refuse_loss(folder: Path, dates: list[str]) -> None:
    """Refuse to replace a folder by one with fewer days.

    Raises:
        HeadwaterError: the folder holds days that were not asked for.
    """
    file = folder / "metadata.csv"
    if not file.exists():
        return
    held = set(pd.read_csv(file, dtype=str)["captured_at"])
    if lost := sorted(held - set(dates)):
        rule = f"already holds {', '.join(lost[:3])}"
        raise HeadwaterError(folder, rule, "name these days as well, or take another key")


def rows_of(cfg: Config, paths: Paths, date: str) -> pd.DataFrame:
    """One day's images: ref, sha256 and the columns of metadata.csv (label blank if unknown)."""
    frame, _ = read_predictions(paths, date)
    inside = relative(frame["path"], cfg, date)
    labels = read_labels(cfg, paths, date)
    known = pd.DataFrame(columns=["path", "label", "group"]) if labels is None else labels
    known = known.reindex(columns=["path", "label", "group"]).set_index("path")
    return pd.DataFrame(
        {
            "ref": frame["path"],
            "sha256": frame["sha256"],
            "path": date + "/" + inside,
            "label": inside.map(known["label"]).astype("str").fillna(""),
            "group": _groups(frame, inside.map(known["group"]).astype("str").fillna("")),
            "source": DEPLOYMENT,
            "captured_at": date,
        }
    )


def _groups(frame: pd.DataFrame, told: pd.Series) -> pd.Series:
    """The labels' group, else what the path says (``deploy.group``), else blank."""
    own = frame["group"].astype("str").fillna("") if "group" in frame else ""
    return told.where(told != "", own)


def copy(row: Any, root: Path, out: Path) -> None:
    """Write one image, checked against the prediction log.

    Raises:
        HeadwaterError: unsafe name, missing file, or other content than was predicted on.
    """
    pure = PurePosixPath(row.path)
    if pure.is_absolute() or ".." in pure.parts or "::" in row.path or "\\" in row.path:
        raise HeadwaterError(row.ref, "is not a safe file name", "predict this day again")
    fix = "restore the file, or predict this day again"
    try:
        data = images.read_bytes(row.ref, root)
    except (images.Reject, OSError) as error:
        raise HeadwaterError(row.ref, f"cannot be read any more ({error})", fix) from error
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise HeadwaterError(row.ref, "changed since it was predicted on", fix)
    file = out / pure
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def run(cfg: Config, paths: Paths, dates: list[str], key: str) -> dict[str, Any]:
    """Write data/collected/<key>/ with the images of ``dates`` and metadata.csv.

    Asking again for the same key and days renews the folder (labels may have come since).

    Raises:
        HeadwaterError: unsafe key, no dates, a day without predictions, a changed image, or a
            folder of this key with other days.
    """
    folder = target(paths, key)
    if not dates:
        raise HeadwaterError("dates", "are none", "name at least one day, YYYY-MM-DD")
    for date in dates:
        partition(paths.predictions, date)  # refuses what is not a day
    refuse_loss(folder, dates)
    table = pd.concat([rows_of(cfg, paths, d) for d in sorted(set(dates))], ignore_index=True)
    table = table[~table["sha256"].isin(forgotten.read(paths.forgotten))]
    with Reporter("collect") as report, atomic_dir(folder) as out:
        for row in table.itertuples(index=False):
            copy(row, paths.root, out)
        table = table.sort_values("path")
        table[COLUMNS].to_csv(out / "metadata.csv", index=False, lineterminator="\n")
        labelled = int((table["label"] != "").sum())
        report.log(f"{len(table)} images, {labelled} labelled, in {folder}")
    return {
        "images": len(table),
        "labelled": labelled,
        "days": len(set(dates)),
        "folder": folder.relative_to(paths.root).as_posix(),
        "content": sha256_json(sorted(table["sha256"])),
    }
