"""What a challenger brings into the registry: its files, what is normal for it, and its card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import embed, models, registry
from ..artifacts import read_json, sha256_file
from ..config import Config, Deploy, Paths
from ..errors import HeadwaterError
from ..evaluate import _head
from ..gate import Slice
from ..report import model_card
from ..shards import synthetic
from .pretrain import SEEN, trained_on

REFERENCE = (
    "sha256",
    "group",
    "source",
    "label",
    "embedding",
    "prediction",
    "confidence",
    "correct",
    "share",
    "images",
)


def with_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds ``share``, of right answers among a group's labelled images, and their number
    ``images``: the one that is drawn of a group speaks for all when accuracy is told.
    """
    right = frame["correct"].astype(float).groupby(frame["group"])
    return frame.assign(share=right.transform("mean"), images=right.transform("count"))


def reference(cfg: Deploy, paths: Paths) -> pd.DataFrame:
    """Held-out images that stand for normal: one per group, drawn by content hash."""
    frame = pd.read_parquet(paths.evaluation / "test_predictions.parquet")
    test = embed.load(paths.embeddings, "test")
    place = pd.Series(np.arange(len(test)), test.sha256)
    drawn = with_groups(frame).sort_values("sha256").drop_duplicates("group").head(cfg.reference)
    features = test.features[place[drawn["sha256"]].to_numpy()]
    drawn = drawn.assign(embedding=list(features))
    return drawn[list(REFERENCE)].reset_index(drop=True)


def files(paths: Paths) -> dict[str, Path]:
    """What a model is made of, by name in the registry.

    Raises:
        HeadwaterError: a stage has not run.
    """
    found = {
        models.WEIGHTS: paths.pretrain,
        models.META: paths.pretrain,
        _head.WEIGHTS: paths.evaluation,
        _head.META: paths.evaluation,
    }
    for name, folder in found.items():
        if not (folder / name).exists():
            raise HeadwaterError(folder / name, "is missing", "run stages pretrain to evaluate")
    return {name: folder / name for name, folder in found.items()}


def card(paths: Paths, whole: Slice) -> dict[str, Any]:
    """What to know of a model years later; no time in it, so equal models have equal cards."""
    index = pd.read_parquet(paths.shards / "index.parquet")
    train = index[index["split"] == "train"]
    about, meta = read_json(paths.shards / "index.json"), read_json(paths.pretrain / models.META)
    return {
        "sources": sorted(train.loc[~synthetic(train["source"]), "source"].unique().tolist()),
        "images": len(train),
        "groups": int(train["group"].nunique()),
        "max_side": about["max_side"],
        "classes": len(read_json(paths.evaluation / _head.META)["classes"]),
        "method": meta.get("method"),
        "image_size": meta["image_size"],
        "index": sha256_file(paths.shards / "index.json"),  # where shards lie in a bucket, too
        "accuracy": {"value": whole["candidate"], "n": whole["n"]},
        "lineage": {
            p.name: sha256_file(p / "lineage.json")
            for p in (paths.shards, paths.pretrain, paths.evaluation)
        },
    }


def described(paths: Paths, content: dict[str, Any], reason: str) -> str:
    """The model card of what stage evaluate measured."""
    results = pd.read_parquet(paths.evaluation / "results.parquet")
    return model_card.render(
        content,
        read_json(paths.pretrain / models.META),
        reason,
        model_card.evidence(results),
        model_card.limits(content, results),
        content["lineage"],
    )


def enter(cfg: Config, paths: Paths, whole: Slice, reason: str) -> str:
    """Copy the challenger into the registry; returns its id."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        reference(cfg.deploy, paths).to_parquet(work / "reference.parquet", index=False)
        trained_on(paths).to_parquet(work / SEEN, index=False)
        content = card(paths, whole)
        (work / model_card.NAME).write_text(described(paths, content, reason))
        extra = {f: work / f for f in ("reference.parquet", SEEN, model_card.NAME)}
        return registry.add(paths.registry, {**files(paths), **extra}, content)
