"""Which images go on, and on which side of the split."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from .. import bands, images, plugins
from ..artifacts import atomic_dir, write_json, write_lineage
from ..config import Config, Paths
from ..curation._copies import Look
from ..curation._pixels import SIDE, Pixels, thumbnail
from ..curation._union import assign_split
from ..curation._vectors import Ints
from ..errors import HeadwaterError
from ..parallel import ordered_map
from ..progress import Reporter
from ..types import Array
from . import synthesise
from ._gate import require_sound, require_valid

UNLABELLED = "(unlabelled)"
BALANCING = ("balance", "hierarchical", "temperature")  # reasons that change clusters' shares


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
        detail="",
    )


def load_features(paths: Paths, rows: int) -> Array:
    """Seed features (N, D), mapped from the file.

    Raises:
        HeadwaterError: they belong to another manifest.
    """
    file = paths.seed_embeddings / "embeddings.npy"
    features: Array = np.load(file, mmap_mode="r")
    if len(features) != rows:
        rule = f"has {len(features)} rows, the manifest {rows}"
        raise HeadwaterError(file, rule, "run stage seed_embed again")
    return features


def needs_split(step: ModuleType) -> bool:
    """Whether a step rests on the split; the others' duplicate groups shape it."""
    return bool(getattr(step, "NEEDS_SPLIT", False))


def load_steps(names: tuple[str, ...]) -> list[tuple[str, ModuleType]]:
    """Import the steps in order.

    Raises:
        HeadwaterError: unknown step, or one that needs the split before one that shapes it.
    """
    steps = [(name, plugins.load("curation", name)) for name in names]
    late = [needs_split(module) for _, module in steps]
    if late != sorted(late):
        first = names[late.index(True)]
        rule = f"'{first}' runs before a step whose duplicate groups shape the split"
        raise HeadwaterError(f"curate.steps = {list(names)}", rule, f"put '{first}' last")
    return steps


def looker(refs: pd.Series, root: Path, channels: int) -> Look:
    """Reads small pictures of some rows, with threads."""

    def read(ref: str) -> Pixels:
        try:
            data = images.read_bytes(ref, root)
            return thumbnail(bands.to_rgb(images.decode(data, 2 * SIDE, channels=channels)))
        except (images.Reject, OSError) as error:
            rule = f"was readable at ingest and is not now ({error})"
            raise HeadwaterError(ref, rule, "run stage ingest again") from error

    def look(rows: Ints) -> Pixels:
        threads = os.cpu_count() or 1
        found = np.empty((len(rows), 3, SIDE, SIDE), dtype=np.uint8)
        for i, picture in enumerate(ordered_map(read, refs.iloc[rows], threads, 32 * threads)):
            found[i] = picture
        return found

    return look


def curate(
    frame: pd.DataFrame, features: Array, cfg: Config, report: Reporter, look: Look | None = None
) -> pd.DataFrame:
    """Run the steps: those whose duplicate groups shape the split, then those that need it."""

    def run_all(steps: list[tuple[str, ModuleType]], frame: pd.DataFrame) -> pd.DataFrame:
        for name, step in steps:
            before = int(frame["keep"].sum())
            see = {"look": look} if getattr(step, "NEEDS_PIXELS", False) else {}
            frame = step.apply(frame, features, cfg.curate, cfg.seed, **see)
            report.log(f"{name}: {before} -> {int(frame['keep'].sum())} images")
        return frame

    steps = load_steps(cfg.curate.steps)
    first = sum(not needs_split(step) for _, step in steps)
    frame = run_all(steps[:first], frame)
    frame["split"] = assign_split(frame, cfg.data.test_fraction)
    frame = run_all(steps[first:], frame)
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
    pool = (frame["split"] == "train") & (kept | frame["reason"].isin(BALANCING))
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
        HeadwaterError: validation failed, features that are unsound or of another manifest, bad
            order of steps, or an empty side of the split.
    """
    require_valid(paths)
    require_sound(paths.seed_embeddings, "seed_embed")
    with Reporter("curate") as report, atomic_dir(paths.curated) as out:
        frame = load_frame(paths)
        look = looker(frame["path"], paths.root, cfg.data.channels)
        features = load_features(paths, len(frame))
        frame = curate(frame, features, cfg, report, look)
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
        inputs |= {f: Path(f) for f in cfg.curate.retrieval.trusted if Path(f).is_file()}
        counts: dict[str, Any] = summary["counts"]
        write_lineage(out, "curate", config, inputs, counts)
        report.log(f"{counts['train']} train, {counts['test']} test", **counts)
    return counts
