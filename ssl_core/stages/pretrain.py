"""Self-supervised pretraining on the train shards."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from .. import job, launch, store, telemetry, train
from ..artifacts import (
    atomic_dir,
    atomic_file,
    read_lines,
    sha256_file,
    sha256_json,
    write_bytes,
    write_lineage,
)
from ..config import Before, Config, Paths
from ..errors import HeadwaterError
from ..progress import Reporter
from ..reader import ShardReader
from ._gate import require_sound

SEEN = "seen.parquet"  # the images that an encoder in this folder was trained on
# What may change between a run and the one that continues it.
FREE = (
    "accumulate",
    "augment",
    "batch_size",
    "checkpoint_steps",
    "compile",
    "export",
    "nodes",
    "parallel",
    "processes",
    "rendezvous",
    "restarts",
)


def work_folder(cfg: Config, paths: Paths) -> Path:
    """Where this exact job keeps its checkpoints: same data and config resume, others do not."""
    data = sha256_file(paths.shards / "lineage.json")
    settings = {k: v for k, v in cfg.section("pretrain").items() if k not in FREE}
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
    reader = ShardReader(folder, "train", cfg.pretrain.image_size, rgb=True)
    features = embed.compute(encoder, reader, mean, std)
    embed.save_array(path, density.weights(features, sam.alpha))


def _launch(cfg: Config, paths: Paths, work: Path, out: Path, report: Reporter) -> bool:
    """The same under torchrun; what comes before runs in this process.

    Whether this is the machine of rank 0, the only one that has the encoder.
    """
    p = cfg.pretrain
    if p.nodes != "1" and (p.before.method or (p.sam.radius and p.sam.alpha)):
        raise HeadwaterError(
            f"pretrain.nodes {p.nodes}",
            "cannot prepare pretrain.before or the weights of pretrain.sam on several machines",
            "train the first method alone and set pretrain.init; set pretrain.sam.alpha: 0",
        )
    cfg = _after(cfg, paths.shards, work, report)
    _weigh(cfg, paths.shards, work)
    return launch.run(cfg, paths.shards, work, out)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Train (or go on training) and write the encoder.

    Of several machines only that of rank 0 writes it.

    Raises:
        HeadwaterError: damaged shards, unknown method, diverged training.
        Preempted: SIGTERM or SIGINT came. The state is saved and no product written.
    """
    require_sound(paths.shards, "shard")
    store.verify(paths.shards)
    work = work_folder(cfg, paths)
    work.mkdir(parents=True, exist_ok=True)
    _note_seen(paths, work)
    with Reporter("pretrain") as report, tempfile.TemporaryDirectory(dir=work) as name:
        made = Path(name)
        if not launch.needed(cfg.pretrain):
            train.export(fit(cfg, paths.shards, work, report), cfg, made)
        elif not _launch(cfg, paths, work, made, report):
            return {"method": cfg.pretrain.method, "written": "on the machine of rank 0"}
        counts = _write(cfg, paths, work, made)
        _keep_telemetry(paths, work)
    shutil.rmtree(work, ignore_errors=True)  # the whole product stands: the way there may go
    return counts | {"method": cfg.pretrain.method}


def trained_on(paths: Paths) -> pd.DataFrame:
    """sha256 and group of the images that an encoder of these shards is trained on."""
    index = pd.read_parquet(paths.shards / store.INDEX, columns=["split", "key", "group"])
    train = index[index["split"] == "train"].rename(columns={"key": "sha256"})
    return train[["sha256", "group"]]


def _note_seen(paths: Paths, work: Path) -> None:
    """Before the first step: shards may be others by the time that somebody asks."""
    with atomic_file(work / SEEN) as temp:
        trained_on(paths).to_parquet(temp, engine="pyarrow", index=False)


def _keep_telemetry(paths: Paths, work: Path) -> None:
    """Outside the product, whose bytes are the same in every run."""
    if (work / telemetry.FILE).exists():
        kept = telemetry.home(paths.runs, paths.pretrain)
        write_bytes(kept, (work / telemetry.FILE).read_bytes())


def _write(cfg: Config, paths: Paths, work: Path, made: Path) -> dict[str, Any]:
    """The product: encoder, log and lineage."""
    with atomic_dir(paths.pretrain) as out:
        shutil.copytree(made, out, dirs_exist_ok=True)
        shutil.copy(work / train.LOG, out / train.LOG)
        shutil.copy(work / SEEN, out / SEEN)
        log = read_lines(out / train.LOG)
        pd.DataFrame(log).to_csv(out / "log.csv", index=False)  # for `dvc plots`
        refused = sorted(read_lines(work / job.REJECTS), key=lambda r: (r["shard"], r["key"]))
        text = "".join(json.dumps(r, sort_keys=True) + "\n" for r in refused)
        write_bytes(out / job.REJECTS, text.encode())
        counts = {"steps": len(log), "loss": log[-1]["loss"], "rejected": len(refused)}
        config = cfg.section("pretrain") | {"seed": cfg.seed}
        write_lineage(out, "pretrain", config, {"shards": paths.shards}, counts)
    return counts
