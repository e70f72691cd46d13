"""Which images go on, and on which side of the split."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from .. import plugins
from ..artifacts import atomic_dir, write_json, write_lineage
from ..config import Config, Paths
from ..curation._union import assign_split
from ..errors import HeadwaterError
from ..progress import Reporter
from ..types import Array
from . import synthesise
from ._gate import require_valid

UNLABELLED = "(unlabelled)"


def load_frame(paths: Paths) -> pd.DataFrame:
    """The manifest with curation's columns; quarantined rows are out already."""
    frame = pd.read_parquet(paths.manifest / "manifest.parquet").reset_index(drop=True)
    bad = pd.read_parquet(paths.validation / "quarantine.parquet")
    quarantined = frame["path"].isin(bad["path"])
    return frame.assign(
        dup_group=np.int64(-1),
        dup_of=pd.Series(pd.NA, frame.index, dtype="str"),
        cluster=np.int64(-1),
        split="train",
        keep=~quarantined,
        reason=np.where(quarantined, "quarantine", ""),
    )


def load_features(paths: Paths, rows: int) -> Array:
    """Seed features (N, D).

    Raises:
        HeadwaterError: they belong to another manifest.
    """
    file = paths.seed_embeddings / "embeddings.npy"
    features: Array = np.load(file)
    if len(features) != rows:
        rule = f"has {len(features)} rows, the manifest {rows}"
        raise HeadwaterError(file, rule, "run stage seed_embed again")
    return features


def load_steps(names: tuple[str, ...]) -> list[tuple[str, ModuleType]]:
    """Import the steps in order.

    Raises:
        HeadwaterError: unknown step, or one that needs the split before one that shapes it.
    """
    steps = [(name, plugins.load("curation", name)) for name in names]
    late = [getattr(module, "NEEDS_SPLIT", False) for _, module in steps]
    if late != sorted(late):
        first = names[late.index(True)]
        rule = f"'{first}' runs before a step whose duplicate groups shape the split"
        raise HeadwaterError(f"curate.steps = {list(names)}", rule, f"put '{first}' last")
    return steps


def curate(frame: pd.DataFrame, features: Array, cfg: Config, report: Reporter) -> pd.DataFrame:
    """Run the steps. The split is known to each of them and final after the last."""
    for name, step in load_steps(cfg.curate.steps):
        frame["split"] = assign_split(frame, cfg.data.test_fraction)
        before = int(frame["keep"].sum())
        frame = step.apply(frame, features, cfg.curate, cfg.seed)
        report.log(f"{name}: {before} -> {int(frame['keep'].sum())} images")
    frame["split"] = assign_split(frame, cfg.data.test_fraction)
    return synthesise.apart(frame)


def require_both(frame: pd.DataFrame) -> None:
    """Refuse a split with an empty side."""
    for split in ("train", "test"):
        if not (frame["keep"] & (frame["split"] == split)).any():
            raise HeadwaterError(
                f"split '{split}'",
                "holds no image",
                "add images of more groups, or change data.test_fraction",
            )


def _histogram(values: pd.Series) -> dict[str, int]:
    return {str(k): int(n) for k, n in values.value_counts().sort_index().items()}


def _conflicts(frame: pd.DataFrame) -> int:
    """Duplicate groups whose members carry different labels: a floor on label noise."""
    groups = frame[frame["dup_group"] >= 0].groupby("dup_group")
    return int((groups["label"].nunique() > 1).sum())


def summarise(frame: pd.DataFrame) -> dict[str, Any]:
    """Counts, and what the choice did to classes and clusters."""
    kept = frame["keep"]
    label = frame["label"].fillna(UNLABELLED)
    pool = (frame["split"] == "train") & (kept | (frame["reason"] == "balance"))
    return {
        "counts": {
            "images": len(frame),
            "kept": int(kept.sum()),
            "train": int((kept & (frame["split"] == "train")).sum()),
            "test": int((kept & (frame["split"] == "test")).sum()),
            "dropped": _histogram(frame.loc[~kept, "reason"]),
            "duplicate_groups": int(frame.loc[frame["dup_group"] >= 0, "dup_group"].nunique()),
            "label_conflicts": _conflicts(frame),
        },
        "classes": {"before": _histogram(label), "after": _histogram(label[kept])},
        "clusters": {
            "before": _histogram(frame.loc[pool, "cluster"]),
            "after": _histogram(frame.loc[pool & kept, "cluster"]),
        },
    }


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write curated/: curated.parquet and summary.json; with ``synthesise``, what it made.

    Raises:
        HeadwaterError: validation failed, features of another manifest, bad order of steps,
            or an empty side of the split.
    """
    require_valid(paths)
    with Reporter("curate") as report, atomic_dir(paths.curated) as out:
        frame = load_frame(paths)
        features = load_features(paths, len(frame))
        frame = curate(frame, features, cfg, report)
        require_both(frame)
        frame, made = synthesise.extend(cfg, paths, frame, features, out, report)
        summary = summarise(frame)
        summary["counts"] |= {"synthetic": made} if made else {}
        frame.to_parquet(out / "curated.parquet", engine="pyarrow", index=False)
        write_json(out / "summary.json", summary)
        config = cfg.section("curate") | cfg.section("seed")
        config["test_fraction"] = cfg.data.test_fraction
        config["synthesise"] = cfg.section("synthesise")
        inputs = {
            "manifest": paths.manifest,
            "validation": paths.validation,
            "seed_embeddings": paths.seed_embeddings,
        }
        counts: dict[str, Any] = summary["counts"]
        write_lineage(out, "curate", config, inputs, counts)
        report.log(f"{counts['train']} train, {counts['test']} test", **counts)
    return counts
