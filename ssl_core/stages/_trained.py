"""Trainings by the recipe of section bench, each done once.

Compute is counted in floating-point operations of one training step (torch's own counter, teacher
and decoder included), so a method with cheap steps takes more of them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import checkpoints, finetune, job, models, step
from ..artifacts import atomic_file, read_json, sha256_file, sha256_json
from ..config import Arm, Config
from ..evaluate._head import Head
from ..progress import Reporter
from ..reader import ShardReader
from ..types import Labels
from . import pretrain
from .seeds import Images, checked

_COUNTED: dict[str, int] = {}  # floating-point operations of a step, by what they depend on
HEAD = "projector.safetensors"  # beside the encoder of a method that has one


def training(cfg: Config, arm: Arm, seed: int, where: str = "bench") -> Config:
    """The configuration of one training, but for its length.

    Raises:
        HeadwaterError: a method or option that does not exist.
    """
    b, name = cfg.bench, arm.name or arm.method
    base = {
        "method": arm.method,
        "backbone": b.backbone,
        "backbone_args": b.backbone_args,
        "image_size": b.image_size,
        "crop_size": b.image_size,
        "batch_size": b.batch_size,
        "options": b.options.get(name, {}),
        "checkpoint_steps": 10**6,
    }
    section = checked(base | arm.changes, f"{where}: {name}", f"section {where} of params.yaml")
    return cfg.model_copy(update={"seed": seed, "pretrain": section})


def step_flops(cfg: Config, folder: Path) -> int:
    """Floating-point operations of one training step, backward pass included."""
    run = job.build(cfg, folder, folder / "none")
    run.method.train()
    batches = list(run.reader.batches(cfg.pretrain.batch_size, 0, 1))
    return step.flops(run, step.parts(run, batches, 0), 0)


def with_budget(cfg: Config, folder: Path) -> Config:
    """As long as ``bench.teraflops`` last."""
    about = read_json(folder / "index.json")
    same = sha256_json([cfg.section("pretrain"), len(about["classes"]), about.get("channels")])
    if same not in _COUNTED:  # it takes as long as several steps, and studies train many alike
        _COUNTED[same] = step_flops(cfg, folder)
    steps = max(1, round(cfg.bench.teraflops * 1e12 / _COUNTED[same]))
    images = len(ShardReader(folder, "train", cfg.bench.image_size))
    epochs = steps * cfg.pretrain.batch_size / images
    section = cfg.pretrain.model_copy(update={"epochs": epochs})
    return cfg.model_copy(update={"pretrain": section})


def digest(cfg: Config, folder: Path) -> str:
    """Of all that a training of :func:`fit` depends on."""
    options = job.options(cfg.pretrain).model_dump(mode="json")
    kept = [cfg.section("pretrain"), options, cfg.bench.teraflops, cfg.seed]
    return sha256_json([sha256_file(folder / "index.json"), *kept])[:12]


def fit(cfg: Config, folder: Path, work: Path, report: Reporter) -> models.Encoder:
    """The encoder of one training of ``bench.teraflops``, from ``work`` if it has been done.

    ``encoder.json`` holds its steps and seconds under "about" (:func:`about`).

    Raises:
        HeadwaterError: the guard stopped the training.
    """
    if (work / models.META).exists():  # written last
        return models.load(work)
    own = with_budget(cfg, folder)
    images = len(ShardReader(folder, "train", cfg.bench.image_size))
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    method: Any = pretrain.fit(own, folder, work, report)
    steps = round(own.pretrain.epochs * images / own.pretrain.batch_size)
    _save_head(getattr(method, "projector", None), work)
    told = {"steps": steps, "seconds": time.monotonic() - start}
    models.save(method.encoder, work, {"about": told})
    checkpoints.clear(work)
    for left in work.glob("*.jsonl"):
        left.unlink()
    trained: models.Encoder = method.encoder
    return trained


def about(work: Path) -> dict[str, Any]:
    """Steps and seconds of a training that has been done."""
    told: dict[str, Any] = read_json(work / models.META)["about"]
    return told


def _save_head(head: nn.Module | None, work: Path) -> None:
    from safetensors.torch import save_file

    state = {} if head is None else head.state_dict()
    if state:
        with atomic_file(work / HEAD) as temp:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temp)


def whole(cfg: Config, folder: Path, work: Path) -> Any:
    """The method as it was trained, with encoder and projector, in eval mode."""
    from safetensors.torch import load_file

    method: Any = job.build(cfg, folder, work / "none").method
    method.encoder.load_state_dict(models.load(work).state_dict())
    if (work / HEAD).exists():
        method.projector.load_state_dict(load_file(work / HEAD))
    return method.eval()


def untrained(cfg: Config, seed: int) -> models.Encoder:
    """What trainings of this seed start from."""
    torch.manual_seed(seed)
    return models.create(cfg.bench.backbone, cfg.bench.backbone_args)


def fine_tuned(
    steps: int, seed: int, images: Images, encoder: models.Encoder, head: Head
) -> Labels:
    """What encoder and linear probe say after training together: codes of the test rows, (M,).

    ``encoder`` is changed by the call.
    """
    classes = np.asarray(images.rows.classes)
    place = np.searchsorted(head.classes, classes)  # of a class among those the head knows
    found = finetune.predict(
        encoder,
        (head.weight, head.bias),
        images.reader,
        np.where(images.rows.labels >= 0, place[images.rows.labels], -1),
        images.known("train"),
        images.known("test"),
        finetune.Budget(steps=steps),
        seed,
    )
    codes: Labels = np.searchsorted(classes, np.asarray(head.classes)[found])
    return codes
