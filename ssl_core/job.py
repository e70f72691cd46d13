"""What one rank needs to train, built from the configuration."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import checkpoints, dist, models, plugins
from .artifacts import read_json, read_lines, sha256_json
from .augment import Augmenter
from .config import Config, Pretrain
from .errors import HeadwaterError
from .guard import Guard
from .shards import ShardReader
from .types import Labels, Task, View

ROLLBACKS, WEIGHTS = "rollbacks.jsonl", "weights.npy"  # in the work folder
KNOB = "change pretrain.options"  # where a method has no advice of its own


def device() -> torch.device:
    """The accelerator of this rank if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def use_bf16(precision: str, on: torch.device, convolutions: bool = False) -> bool:
    """Whether autocast to bf16 is on: asked for, or ``auto`` where the device gains from it.

    A GPU that computes in bf16 does. On a CPU with AVX512-BF16 convolutions do (ResNet-10t:
    435 against 282 views/s), but not the narrow ViTs one trains there (541 against 611; LOG.md).
    """
    if precision != "auto":
        return precision == "bf16"
    if on.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return convolutions and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def _gains(encoder: models.Encoder, views: list[View]) -> bool:
    """Whether ``auto`` may run this encoder's convolutions in bf16 on a CPU.

    A strided 3x3 convolution of a 1x1 map has non-finite gradients there (bf16, channels last,
    torch 2.15; LOG.md), and maps shrink so far for views smaller than the encoder's stride.
    """
    return not encoder.is_vit and min(view.size for view in views) >= encoder.stride


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then cosine to zero."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases, norms and other 1-D parameters are not decayed."""
    live = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in live if p.ndim > 1], "weight_decay": weight_decay, "decays": True},
        {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0, "decays": False},
    ]


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one step of one rank."""
    return int(sha256_json([seed, step, rank])[:15], 16)


@dataclass
class Run:
    """All that one rank needs to train."""

    cfg: Config
    work: Path
    method: nn.Module
    options: Any  # the method's Config
    optimizer: torch.optim.Optimizer
    reader: ShardReader
    labels: Tensor  # (N,) int64 of the reader's rows, -1 for unknown
    weights: Tensor | None  # (N,) float32 for rwSAM
    augment: Augmenter
    device: torch.device
    steps: int
    peak: float
    guard: Guard
    bf16: bool  # autocast is on
    factor: float = 1.0  # of the learning rate: halved each time training had to go back
    features: Tensor | None = None  # (B, D) of the encoder's last pass

    def state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state(),
        }

    def restore(self) -> int:
        """Load the newest whole checkpoint; returns the step to do next."""
        self.factor = 0.5 ** len(read_lines(self.work / ROLLBACKS))
        found = checkpoints.latest(self.work)
        if found is None:
            return 0
        step, state = found
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load(state["guard"])
        return step


def options(p: Pretrain) -> Any:
    """The method's typed options: its small recipe or the paper's, with the user's on top.

    Raises:
        HeadwaterError: unknown method.
        pydantic.ValidationError: unknown option or bad value.
    """
    plugin = plugins.load("methods", p.method)
    start = plugin.PAPER if p.recipe == "paper" else {}
    return plugin.Config.model_validate({**start, **p.options})


def build(cfg: Config, shards: Path, work: Path) -> Run:
    """Method, optimiser, reader and augmentation from the configuration."""
    p, dev = cfg.pretrain, device()
    torch.manual_seed(cfg.seed)
    plugin, chosen = plugins.load("methods", p.method), options(p)
    encoder = models.load(Path(p.init)) if p.init else models.create(p.backbone, p.backbone_args)
    rank, world = dist.rank(), dist.world()
    reader = ShardReader(shards, "train", p.image_size, cfg.seed, rank, world)
    models.require_channels(encoder, reader.channels)
    classes = read_json(shards / "index.json")["classes"]
    labels = torch.from_numpy(_codes(reader, classes))
    batch = p.batch_size * world
    steps = max(1, round(p.epochs * len(reader) / batch))
    # Channels last is what convolutions are fastest in (282 against 219 views/s, ResNet-10t).
    form = torch.preserve_format if encoder.is_vit else torch.channels_last
    task = Task(p.crop_size, steps, len(classes))
    method = plugin.Method(encoder, chosen, task).to(dev, memory_format=form)
    if dev.type == "cuda":
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    peak = (chosen.lr if p.lr is None else p.lr) * batch / 256
    optimizer = _optimizer(method, p, chosen, peak)
    augment = Augmenter(method.views, *models.normalisation(reader.channels))
    guard = Guard(steps, getattr(plugin, "KNOB", KNOB))
    weights = _weights(p, method, work)
    run = Run(
        cfg,
        work,
        method,
        chosen,
        optimizer,
        reader,
        labels,
        weights,
        augment,
        dev,
        steps,
        peak,
        guard,
        use_bf16(p.precision, dev, _gains(encoder, method.views)),
    )
    encoder.register_forward_hook(lambda _m, _i, out: setattr(run, "features", out.pooled.detach()))
    return run


def _codes(reader: ShardReader, classes: list[str]) -> Labels:
    return pd.Categorical(reader.frame["label"], categories=classes).codes.astype(np.int64)


def _weights(p: Pretrain, method: nn.Module, work: Path) -> Tensor | None:
    """What stage pretrain left for rwSAM: one weight per row."""
    path = work / WEIGHTS
    if not (p.sam.radius and p.sam.alpha and path.exists()):
        return None
    if "weights" not in getattr(method, "wants", ()):
        raise HeadwaterError(
            f"pretrain.sam.alpha {p.sam.alpha}",
            f"needs a method that weighs images, which {p.method} does not",
            "set pretrain.sam.alpha: 0 (plain SAM), or another method",
        )
    return torch.from_numpy(np.load(path))


def _optimizer(method: nn.Module, p: Pretrain, chosen: Any, lr: float) -> torch.optim.Optimizer:
    decay = chosen.weight_decay if p.weight_decay is None else p.weight_decay
    groups = parameter_groups(method, decay)
    if chosen.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=chosen.betas, fused=True)
    if chosen.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=chosen.betas[0])
    from timm.optim.lars import Lars  # arXiv 1708.03888; it leaves undecayed parameters unscaled

    return Lars(groups, lr=lr, momentum=chosen.betas[0])
