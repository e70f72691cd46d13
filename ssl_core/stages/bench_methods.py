"""Every method on the same sets, backbone and compute, beside its baselines.

Compute is counted in floating-point operations of one training step (torch's own counter, teacher
and decoder included), so a method with cheap steps takes more of them. A finished training is
kept in ``runs/bench``: an interrupted or repeated call goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import embed, finetune, job, models, plugins, train
from ..artifacts import atomic_dir, read_json, sha256_file, sha256_json, write_bytes, write_json
from ..config import Arm, Bench, Config, Curate, Data, Paths, Pretrain, Shard
from ..errors import HeadwaterError
from ..progress import Reporter
from ..report import bench as pictures
from ..shards import ShardReader
from . import curate, ingest, pretrain, seed_embed, shard, validate
from .seeds import Images, images_of

PREPARE = (ingest, validate, seed_embed, curate, shard)
MEASURES = ("knn", "linear", "fine_tune")
BASELINES = ("random", "pixels")
RULES = 1  # raise it when a result would differently come about


@dataclass(frozen=True)
class Task:
    """One training: a method (or a baseline) on one set with one seed."""

    set_: str
    name: str
    seed: int


def prepared(cfg: Config, paths: Paths, name: str, where: str, report: Reporter) -> Path:
    """The shards of one set: a folder with shards, or what a script or source gives.

    Raises:
        HeadwaterError: nothing is there.
    """
    place = paths.root / where
    if (place / "index.json").exists():
        return place
    root = paths.runs / "bench" / name
    if not place.exists():
        fix = "name a folder of shards, a source or a script in bench.sets"
        raise HeadwaterError(f"bench.sets.{name} = {where}", "is not there", fix)
    if not (root / "shards/index.json").exists():
        report.log(f"{name}: preparing {where}")
        _prepare(cfg, place.resolve(), root)
    return root / "shards"


def _prepare(cfg: Config, place: Path, root: Path) -> None:
    with atomic_dir(root) as temp:
        inside, source = Paths(temp), str(place)
        if place.suffix == ".py":
            subprocess.run([sys.executable, place, "--root", temp], check=True, capture_output=True)
            source = "data/raw"
        own = cfg.model_copy(
            update={
                "data": Data(sources=(source,), test_fraction=cfg.bench.test_fraction),
                "curate": Curate(steps=("exact",), keep=1.0),
                "shard": Shard(max_side=cfg.bench.image_size),
            }
        )
        for stage in PREPARE:
            stage.run(own, inside)
        inside.shards.rename(temp / "shards")
        for rest in ("data", "runs"):
            shutil.rmtree(temp / rest)


def training(cfg: Config, method: str, seed: int) -> Config:
    """The configuration of one training, but for its length; ``method`` may be a variant's name.

    Raises:
        HeadwaterError: a method or option that does not exist.
    """
    b = cfg.bench
    extra = {arm.name: arm for arm in b.extra}
    arm = extra.get(method, Arm(method=method))
    base = {
        "method": arm.method,
        "backbone": b.backbone,
        "backbone_args": b.backbone_args,
        "image_size": b.image_size,
        "crop_size": b.image_size,
        "batch_size": b.batch_size,
        "options": b.options.get(method, {}),
        "checkpoint_steps": 10**6,
    }
    section = Pretrain.model_validate(base | arm.changes)
    job.options(section)
    return cfg.model_copy(update={"seed": seed, "pretrain": section})


def step_flops(cfg: Config, folder: Path) -> int:
    """Floating-point operations of one training step, backward pass included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    run = job.build(cfg, folder, folder / "none")
    rows, images = next(run.reader.batches(cfg.pretrain.batch_size, 0, 1))
    run.method.train()
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # the fused kernel of the CPU is not counted
        train.one_step(run, run.method, rows, images, 0)
    return int(counter.get_total_flops())


def with_budget(cfg: Config, folder: Path, images: int) -> Config:
    """As long as ``bench.teraflops`` last."""
    steps = max(1, round(cfg.bench.teraflops * 1e12 / step_flops(cfg, folder)))
    epochs = steps * cfg.pretrain.batch_size / images
    section = cfg.pretrain.model_copy(update={"epochs": epochs})
    return cfg.model_copy(update={"pretrain": section})


def _encoder(cfg: Config, arm: Task, folder: Path, work: Path, report: Reporter) -> Any:
    """The trained (or for "random" untrained) encoder, and what its training was."""
    if arm.name == "random":
        torch.manual_seed(arm.seed)
        return models.create(cfg.bench.backbone, cfg.bench.backbone_args), {}
    own = training(cfg, arm.name, arm.seed)
    images = len(ShardReader(folder, "train", cfg.bench.image_size))
    own = with_budget(own, folder, images)
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    method = pretrain.fit(own, folder, work, report)
    steps = round(own.pretrain.epochs * images / own.pretrain.batch_size)
    return method.encoder, {"steps": steps, "seconds": time.monotonic() - start}


def _measure(cfg: Config, arm: Task, images: Images, encoder: Any) -> dict[str, float]:
    if arm.name == "pixels":
        return images.measure(embed.pixels(images.reader))
    colour = models.normalisation(images.reader.channels)
    found = images.measure(embed.compute(encoder, images.reader, *colour))
    if not cfg.bench.fine_tune_steps:
        return found
    known = images.rows.labels >= 0
    train_rows, test_rows = (np.flatnonzero(known & (images.split == s)) for s in ("train", "test"))
    named = finetune.predict(
        encoder,
        images.reader,
        images.rows.labels,
        train_rows,
        test_rows,
        colour,
        finetune.Budget(steps=cfg.bench.fine_tune_steps),
        arm.seed,
    )
    right = (named == images.rows.labels[test_rows]).mean()
    return found | {"fine_tune": float(right)}


def result(
    cfg: Config, paths: Paths, arm: Task, folder: Path, images: Images, report: Reporter
) -> dict[str, Any]:
    """One line of the result, from an earlier call where there is one."""
    what = [RULES, sha256_file(folder / "index.json"), arm.name, arm.seed]
    if arm.name in BASELINES:
        what += [cfg.bench.model_dump(mode="json", include=KEPT)]
    else:
        own = training(cfg, arm.name, arm.seed)
        what += [own.section("pretrain"), cfg.bench.model_dump(mode="json", include=KEPT)]
        what += [job.options(own.pretrain).model_dump(mode="json")]
    file = paths.runs / "bench" / "results" / arm.set_ / f"{arm.name}-{sha256_json(what)[:12]}.json"
    if file.exists():
        found: dict[str, Any] = read_json(file)
        return found
    work = file.with_suffix("")
    encoder, about = (
        (None, {}) if arm.name == "pixels" else _encoder(cfg, arm, folder, work, report)
    )
    row = {"set": arm.set_, "name": arm.name, "seed": arm.seed, **about}
    row |= _measure(cfg, arm, images, encoder)
    write_json(file, row)
    shutil.rmtree(work, ignore_errors=True)
    return row


KEPT = {"backbone", "backbone_args", "image_size", "teraflops", "fine_tune_steps"}


def quick(bench: Bench) -> Bench:
    """One seed, a tenth of the compute, no fine-tuning."""
    changes = {"seeds": 1, "teraflops": bench.teraflops / 10, "fine_tune_steps": 0}
    return bench.model_copy(update=changes)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per set and name: mean and 95 % interval over seeds, and the margin over random init.

    Margins are paired: a seed's random init is what its training started from.
    """
    table = []
    for set_, name in dict.fromkeys((r["set"], r["name"]) for r in rows):
        mine = [r for r in rows if (r["set"], r["name"]) == (set_, name)]
        base = {r["seed"]: r for r in rows if (r["set"], r["name"]) == (set_, "random")}
        line: dict[str, Any] = {"set": set_, "name": name, "seeds": len(mine)}
        line |= {
            k: float(np.mean([r[k] for r in mine])) for k in ("steps", "seconds") if k in mine[0]
        }
        for measure in (m for m in MEASURES if m in mine[0]):
            values = [r[measure] for r in mine]
            margins = [r[measure] - base[r["seed"]][measure] for r in mine if r["seed"] in base]
            line[measure] = {
                "mean": float(np.mean(values)),
                "half": half_width(values),
                "margin": float(np.mean(margins)) if margins else None,
                "margin_half": half_width(margins),
            }
        table.append(line)
    return table


def half_width(values: list[float]) -> float | None:
    """Of Student's 95 % interval of the mean; None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def run(cfg: Config, paths: Paths, fast: bool = False) -> dict[str, Any]:
    """Write reports/bench-methods.json, .md and .png.

    Raises:
        HeadwaterError: a set that is not there, an unknown method.
    """
    if fast:
        cfg = cfg.model_copy(update={"bench": quick(cfg.bench)})
    chosen = cfg.bench.methods or (*plugins.names("methods"), *(a.name for a in cfg.bench.extra))
    for name in chosen:
        training(cfg, name, 0)  # all is checked before the first hour
    rows: list[dict[str, Any]] = []
    with Reporter("bench-methods") as report:
        for set_, where in cfg.bench.sets.items():
            folder = prepared(cfg, paths, set_, where, report)
            images = images_of(folder, cfg.bench.image_size)
            for seed in range(cfg.bench.seeds):
                for name in (*(BASELINES if seed == 0 else BASELINES[:1]), *chosen):  # pixels once
                    row = result(cfg, paths, Task(set_, name, seed), folder, images, report)
                    rows.append(row)
                    said = ", ".join(f"{m} {row[m]:.3f}" for m in MEASURES if m in row)
                    report.log(f"{set_} {name} seed {seed}: {said}")
    table = summary(rows)
    about = cfg.bench.model_dump(mode="json")
    write_json(paths.reports / "bench-methods.json", {"bench": about, "rows": rows, "table": table})
    write_bytes(paths.reports / "bench-methods.md", pictures.markdown(table).encode())
    write_bytes(paths.reports / "bench-methods.png", pictures.picture(table))
    return {
        f"{r['set']} {r['name']}": json.dumps(
            {m: round(r[m]["mean"], 3) for m in MEASURES if m in r}
        )
        for r in table
    }
