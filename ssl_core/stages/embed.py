"""Frozen features of the train and test split under the new encoder."""

from __future__ import annotations

from typing import Any

from .. import embed, models
from ..artifacts import atomic_dir, read_json, write_lineage
from ..config import Config, Paths
from ..progress import Reporter
from ..shards import ShardReader


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write embeddings/: features.npy (N, D) with index.parquet."""
    meta = read_json(paths.pretrain / "encoder.json")
    encoder = models.load(paths.pretrain)
    reader = ShardReader(paths.shards, None, meta["image_size"])
    with Reporter("embed") as report, atomic_dir(paths.embeddings) as out:
        mean, std = tuple(meta["mean"]), tuple(meta["std"])
        features = embed.compute(encoder, reader, mean, std, cfg.embed.batch_size)
        classes = read_json(paths.shards / "index.json")["classes"]
        embed.save(out, features, reader.frame, classes)
        counts = {"images": len(features), "dimensions": features.shape[1]}
        inputs = {"shards": paths.shards, "pretrain": paths.pretrain}
        write_lineage(out, "embed", cfg.section("embed"), inputs, counts)
        report.log(f"{counts['images']} images, {counts['dimensions']} dimensions")
    return counts
