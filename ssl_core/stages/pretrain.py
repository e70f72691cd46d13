"""Self-supervised pretraining on the train shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from .. import job, shards, train
from ..artifacts import atomic_dir, read_lines, sha256_file, sha256_json, write_lineage
from ..config import Before, Config, Paths
from ..progress import Reporter


def work_folder(cfg: Config, paths: Paths) -> Path:
    """Where this exact job keeps its checkpoints: same data and config resume, others do not."""
    data = sha256_file(paths.shards / "lineage.json")
    settings = {k: v for k, v in cfg.section("pretrain").items() if k != "checkpoint_steps"}
    key = sha256_json([settings, cfg.seed, data])[:12]
    return paths.runs / "pretrain" / key


def fit(cfg: Config, folder: Path, work: Path, report: Reporter) -> Any:
    """Train the method and what comes before it, in this process; returns the method.

    Raises:
        HeadwaterError: damaged shards, unknown method, diverged training.
    """
    cfg = _after(cfg, folder, work, report)
    _weigh(cfg, folder, work)
    return train.fit(cfg, folder, work, report)


def _after(cfg: Config, folder: Path, work: Path, report: Reporter) -> Config:
    """Train ``pretrain.before`` if there is one; the configuration that starts from it."""
    p = cfg.pretrain
    if not p.before.method:
        return cfg
    made = work / "before"
    if not (made / "encoder.json").exists():  # written last
        changes = p.before.model_dump() | {"before": Before(), "recipe": "small"}
        first = cfg.model_copy(update={"pretrain": p.model_copy(update=changes)})
        made.mkdir(parents=True, exist_ok=True)
        train.export(train.fit(first, folder, made, report), first, made)
    return cfg.model_copy(update={"pretrain": p.model_copy(update={"init": str(made)})})


def _weigh(cfg: Config, folder: Path, work: Path) -> None:
    """Leave the weights of rwSAM: rare images, by the density of pretrained features."""
    sam, path = cfg.pretrain.sam, work / job.WEIGHTS
    if not (sam.radius and sam.alpha) or path.exists():
        return
    from .. import density, embed, models  # here: few need them, and models imports timm

    encoder, mean, std = models.seed_encoder(sam.encoder)
    reader = shards.ShardReader(folder, "train", cfg.pretrain.image_size, rgb=True)
    features = embed.compute(encoder, reader, mean, std)
    embed.save_array(path, density.weights(features, sam.alpha))


def _launch(cfg: Config, paths: Paths, work: Path, report: Reporter) -> None:
    """The same with several processes; what comes before runs in this one."""
    cfg = _after(cfg, paths.shards, work, report)
    _weigh(cfg, paths.shards, work)
    train.launch(cfg, paths.shards, work, cfg.pretrain.processes)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Train (or go on training) and write the encoder.

    Raises:
        HeadwaterError: damaged shards, unknown method, diverged training.
    """
    shards.verify(paths.shards)
    work = work_folder(cfg, paths)
    work.mkdir(parents=True, exist_ok=True)
    with Reporter("pretrain") as report, atomic_dir(paths.pretrain) as out:
        if cfg.pretrain.processes > 1:
            _launch(cfg, paths, work, report)
            shutil.copytree(work / "final", out, dirs_exist_ok=True)
        else:
            train.export(fit(cfg, paths.shards, work, report), cfg, out)
        shutil.copy(work / "log.jsonl", out / "log.jsonl")
        log = read_lines(out / "log.jsonl")
        pd.DataFrame(log).to_csv(out / "log.csv", index=False)  # for `dvc plots`
        counts = {"steps": len(log), "loss": log[-1]["loss"]}
        config = cfg.section("pretrain") | {"seed": cfg.seed}
        write_lineage(out, "pretrain", config, {"shards": paths.shards}, counts)
    shutil.rmtree(work, ignore_errors=True)  # the whole product stands: the way there may go
    return counts | {"method": cfg.pretrain.method}
