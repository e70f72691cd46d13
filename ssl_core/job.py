"""What one rank needs to train, built from the configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import accumulation, checkpoints, compilation, dist, distribute, models, optim, plugins
from .artifacts import read_lines, sha256_json
from .augment import Augmenter
from .checkpoints import Note
from .config import Config, Pretrain
from .errors import HeadwaterError
from .guard import Guard
from .reader import ShardReader
from .telemetry import FILE, Telemetry
from .types import Labels, Task, View

# In the work folder.
ROLLBACKS, WEIGHTS, REJECTS = "rollbacks.jsonl", "weights.npy", "rejects.jsonl"
OPTIMIZER = "optimizer."  # begins the names of its tensors in a checkpoint
KNOB = "change pretrain.options"  # where a method has no advice of its own


def device() -> torch.device:
    """The accelerator of this rank if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def readers() -> int:
    """Threads that read and decode for this rank: its share of the cores, 2 to 8."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(2, (os.cpu_count() or 1) // ranks))


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


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one step of one rank."""
    return int(sha256_json([seed, step, rank])[:15], 16)


@dataclass
class Run:
    """All that one rank needs to train."""

    cfg: Config
    work: Path
    method: nn.Module
    model: nn.Module  # what to call for a step: the method, or what keeps the ranks together
    options: Any  # the method's Config
    optimizer: torch.optim.Optimizer
    reader: ShardReader
    labels: Tensor  # (N,) int64 of the reader's rows, -1 for unknown
    weights: Tensor | None  # (N,) float32 for rwSAM
    augment: Augmenter
    device: torch.device
    batch: int  # images of a step, over all ranks
    steps: int
    peak: float
    guard: Guard
    bf16: bool  # autocast is on
    by_parts: bool  # gradients of parts of the batch may be added up
    offset: int = 0  # images before step 0: less than a batch, if it had another size once
    factor: float = 1.0  # of the learning rate: halved each time training had to go back
    features: Tensor | None = None  # (B, D) of the encoder's last pass
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(torch.device("cpu")))

    def samples(self, step: int) -> int:
        """Images consumed before ``step``."""
        return self.offset + step * self.batch

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the method's and the optimiser's, by name."""
        state = optim.state(self.optimizer, self.method)
        return self._weights() | {OPTIMIZER + k: v for k, v in state.items()}

    def _weights(self) -> dict[str, Tensor]:
        return {f"method.{k}": v for k, v in self.method.state_dict().items()}

    def facts(self, step: int) -> dict[str, Any]:
        """What a checkpoint's note says after ``step``."""
        return {
            "healthy": self.guard.healthy,
            "measure": self.guard.measure(step),
            "guard": self.guard.state(),
            "batch": self.batch,
        }

    def restore(self, healthy: bool = False) -> tuple[int, Note | None]:
        """Load the newest whole checkpoint; returns the step to do next, and its note.

        The number of images counts, not of steps: with batches of another size (by option or
        by the number of ranks) training goes on at the same image, and steps are those of the
        new size from the beginning on, so that schedules stand at the same share of the whole.
        """
        self.factor = 0.5 ** len(read_lines(self.work / ROLLBACKS))
        found = checkpoints.latest(self.work, healthy) if dist.rank() == 0 else None
        samples = dist.of_first(-1 if found is None else found.samples)
        if samples < 0:
            return 0, None
        note = checkpoints.at(self.work, samples)
        self.load(note)
        self.guard.load(note.facts["guard"])
        step, self.offset = divmod(samples, self.batch)
        return step, note

    def load(self, note: Note) -> None:
        """The tensors of a checkpoint."""
        shapes = {
            k.removeprefix(OPTIMIZER): v for k, v in note.shapes.items() if k.startswith(OPTIMIZER)
        }
        state = optim.prepare(self.optimizer, self.method, shapes)
        checkpoints.load(note, self._weights() | {OPTIMIZER + k: v for k, v in state.items()})


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
    """Method, optimiser, reader and augmentation from the configuration.

    Raises:
        HeadwaterError: options that do not go together, or with the images.
    """
    p, dev = cfg.pretrain, device()
    torch.manual_seed(cfg.seed)
    plugin, chosen = plugins.load("methods", p.method), options(p)
    encoder = models.load(Path(p.init)) if p.init else models.create(p.backbone, p.backbone_args)
    place = dist.rank(), dist.world()
    listed = work / REJECTS
    reader = ShardReader(
        shards, "train", p.image_size, cfg.seed, *place, threads=readers(), rejects=listed
    )
    models.require_channels(encoder, reader.channels)
    batch = p.batch_size * dist.world() * p.accumulate
    steps = max(1, round(p.epochs * len(reader) / batch))
    method = plugin.Method(encoder, chosen, Task(p.crop_size, steps, len(reader.classes)))
    peak = (chosen.lr if p.lr is None else p.lr) * batch / 256
    model, optimizer = _place(method, plugin, p, chosen, peak, steps)
    run = Run(
        cfg=cfg,
        work=work,
        method=method,
        model=model,
        options=chosen,
        optimizer=optimizer,
        reader=reader,
        labels=torch.from_numpy(_codes(reader)),
        weights=_weights(p, method, work),
        augment=Augmenter(method.views, *models.normalisation(reader.channels)),
        device=dev,
        batch=batch,
        steps=steps,
        peak=peak,
        guard=Guard(steps, getattr(plugin, "KNOB", KNOB)),
        bf16=(bf16 := use_bf16(p.precision, dev, _gains(encoder, method.views))),
        by_parts=accumulation.by_parts(plugin),
        telemetry=Telemetry(dev, work / FILE if dist.rank() == 0 else None, bf16),
    )
    encoder.register_forward_hook(lambda _m, _i, out: setattr(run, "features", out.pooled.detach()))
    return run


def _place(
    method: nn.Module, plugin: ModuleType, p: Pretrain, chosen: Any, peak: float, steps: int
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Put the method onto its device, laid out over the ranks; what to call, and its optimiser."""
    encoder: models.Encoder = method.encoder  # type: ignore[assignment]
    encoder.packing = p.packing == "on" or (p.packing == "auto" and device().type == "cuda")
    encoder.checkpointing = p.activation_checkpointing
    distribute.require_fit(p.parallel, chosen.optimizer, p.sam.radius, encoder.is_vit)
    if p.accumulate > 1:
        accumulation.require_exact(plugin, method, p.parallel)
        if not accumulation.by_parts(plugin):
            accumulation.run_by_parts(encoder, p.accumulate)
    # Channels last is what convolutions are fastest in (282 against 219 views/s, ResNet-10t).
    form = torch.preserve_format if encoder.is_vit else torch.channels_last
    method.to(device(), memory_format=form)  # type: ignore[call-overload]
    if device().type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)  # children in place
    if compilation.wanted(p.compile, p.parallel, device(), steps):
        compilation.apply(method, device())
    model = distribute.wrap(method, p.parallel, device())
    decay = chosen.weight_decay if p.weight_decay is None else p.weight_decay
    return model, optim.create(method, chosen.optimizer, peak, decay, chosen.betas)


def _codes(reader: ShardReader) -> Labels:
    return pd.Categorical(reader.frame["label"], categories=reader.classes).codes.astype(np.int64)


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
