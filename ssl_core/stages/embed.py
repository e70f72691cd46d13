"""Frozen features of the train and test split under the new encoder."""

from __future__ import annotations

from typing import Any

import pandas as pd

from .. import embed, models
from ..artifacts import atomic_dir, read_json, write_lineage
from ..config import Config, Paths
from ..progress import Reporter
from ..reader import ShardReader
from ..shards import synthetic
from ..validation import _gx, embeddings
from ._gate import require_sound


def made_here(cfg: Config) -> list[str]:
    """Baselines computed beside the encoder, while the images are decoded; the seed's are there."""
    return [name for name in cfg.evaluate.baselines if name != "seed"]


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write embeddings/: features.npy (N, D) with index.parquet, and <baseline>.npy.

    Real images only: whatever is fitted or measured on them later never meets a synthetic one.

    Raises:
        HeadwaterError: an unknown baseline, or shards that failed their expectations.
    """
    require_sound(paths.shards, "shard")
    meta = read_json(paths.pretrain / "encoder.json")
    encoder = models.load(paths.pretrain)
    reader = ShardReader(paths.shards, None, meta["image_size"])
    with Reporter("embed") as report, atomic_dir(paths.embeddings) as out:
        mean, std = tuple(meta["mean"]), tuple(meta["std"])
        real = ~synthetic(reader.frame["source"])
        features = embed.compute(encoder, reader, mean, std, cfg.embed.batch_size)[real]
        for name in made_here(cfg):
            found = embed.baseline(name, reader, meta, cfg.seed)[real]
            embed.save_array(out / f"{name}.npy", found)
        classes = read_json(paths.shards / "index.json")["classes"]
        embed.save(out, features, reader.frame[real], classes)
        counts = {"images": len(features), "dimensions": features.shape[1]}
        index = pd.read_parquet(paths.shards / "index.parquet", columns=["key", "source"])
        due = index.loc[~synthetic(index["source"]), "key"].tolist()
        keys = pd.read_parquet(out / "index.parquet", columns=["sha256"])["sha256"].tolist()
        counts |= _gx.write(out, embeddings.judge(features, keys, due, encoder.embed_dim))
        inputs = {"shards": paths.shards, "pretrain": paths.pretrain}
        config = cfg.section("embed") | cfg.section("seed") | {"baselines": made_here(cfg)}
        write_lineage(out, "embed", config, inputs, counts)
        report.log(f"{counts['images']} images, {counts['dimensions']} dimensions")
    return counts
