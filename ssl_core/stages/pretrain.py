"""Self-supervised pretraining on the train shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from .. import shards, train
from ..artifacts import atomic_dir, read_lines, sha256_file, sha256_json, write_lineage
from ..config import Config, Paths
from ..progress import Reporter


def work_folder(cfg: Config, paths: Paths) -> Path:
    """Where this exact job keeps its checkpoints: same data and config resume, others do not."""
    data = sha256_file(paths.shards / "lineage.json")
    settings = {k: v for k, v in cfg.section("pretrain").items() if k != "checkpoint_steps"}
    key = sha256_json([settings, cfg.seed, data])[:12]
    return paths.runs / "pretrain" / key


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
            train.launch(cfg, paths.shards, work, cfg.pretrain.processes)
            shutil.copytree(work / "final", out, dirs_exist_ok=True)
        else:
            method = train.fit(cfg, paths.shards, work, report)
            train.export(method, cfg, out)
        shutil.copy(work / "log.jsonl", out / "log.jsonl")
        log = read_lines(out / "log.jsonl")
        pd.DataFrame(log).to_csv(out / "log.csv", index=False)  # for `dvc plots`
        counts = {"steps": len(log), "loss": log[-1]["loss"]}
        config = cfg.section("pretrain") | {"seed": cfg.seed}
        write_lineage(out, "pretrain", config, {"shards": paths.shards}, counts)
    shutil.rmtree(work, ignore_errors=True)  # the whole product stands: the way there may go
    return counts | {"method": cfg.pretrain.method}
