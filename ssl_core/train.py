"""The training loop: one for all methods, one or many processes, resumable to the bit on CPU.

Everything random in a step is a pure function of (seed, step, rank): the reader's batch, the
augmentation's generator and torch's global generator, which is re-seeded before each step. So
a checkpoint needs no generator state, and a resumed run repeats the lost steps exactly.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoints, dist, models, plugins
from .artifacts import append_line, read_json, read_lines, sha256_json, write_bytes, write_json
from .augment import Augmenter
from .config import Config
from .errors import HeadwaterError
from .progress import Reporter
from .shards import ShardReader

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
BAD_STEPS = 3  # non-finite steps in a row before training stops
CLIP = 3.0  # largest gradient norm


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
        {"params": [p for p in live if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0},
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
    optimizer: torch.optim.Optimizer
    reader: ShardReader
    augment: Augmenter
    device: torch.device
    steps: int
    peak: float

    def state(self) -> dict[str, Any]:
        return {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self) -> int:
        """Load the newest whole checkpoint; returns the step to do next."""
        found = checkpoints.latest(self.work)
        if found is None:
            return 0
        step, state = found
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        return step


def build(cfg: Config, shards: Path, work: Path) -> Run:
    """Method, optimiser, reader and augmentation from the configuration."""
    p, dev = cfg.pretrain, device()
    torch.manual_seed(cfg.seed)
    plugin = plugins.load("methods", p.method)
    options = plugin.Config.model_validate(p.options)
    encoder = models.load(Path(p.init)) if p.init else models.create(p.backbone, p.backbone_args)
    rank, world = dist.rank(), dist.world()
    reader = ShardReader(shards, "train", p.image_size, cfg.seed, rank, world)
    batch = p.batch_size * world
    steps = max(1, round(p.epochs * len(reader) / batch))
    # Channels last is what convolutions are fastest in (282 against 219 views/s, ResNet-10t).
    form = torch.preserve_format if encoder.is_vit else torch.channels_last
    method = plugin.Method(encoder, options, p.crop_size, steps).to(dev, memory_format=form)
    if dev.type == "cuda":
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    peak = (options.lr if p.lr is None else p.lr) * batch / 256
    decay = options.weight_decay if p.weight_decay is None else p.weight_decay
    groups = parameter_groups(method, decay)
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=options.betas, fused=True)
    augment = Augmenter(method.views, MEAN, STD)
    return Run(cfg, work, method, optimizer, reader, augment, dev, steps, peak)


def _forward(
    run: Run, model: nn.Module, images: Tensor, step: int
) -> tuple[Tensor, dict[str, Any]]:
    seed = step_seed(run.cfg.seed, step, dist.rank())
    torch.manual_seed(seed)
    generator = torch.Generator(run.device).manual_seed(seed)
    views = run.augment(images.to(run.device, non_blocking=True), generator)
    convolutions = not run.method.encoder.is_vit  # type: ignore[union-attr]
    bf16 = use_bf16(run.cfg.pretrain.precision, run.device, convolutions)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
        loss, metrics = model(views, step)
    return loss, metrics


def _update(run: Run, loss: Tensor, step: int) -> float:
    """One optimiser step; returns the gradient norm. A non-finite one changes nothing.

    Gradients are already averaged over ranks here, so all ranks decide alike.
    """
    lr = learning_rate(step, run.steps, run.peak, run.cfg.pretrain.warmup)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    live = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(live, CLIP)
    if torch.isfinite(norm):
        run.optimizer.step()
        run.method.after_step(step)  # type: ignore[operator]
    return float(norm)


def _note_bad(run: Run, step: int, indices: Any, bad: int) -> None:
    keys = run.reader.frame["key"].iloc[indices].tolist()
    append_line(run.work / "bad_steps.jsonl", {"step": step, "samples": keys})
    if bad >= BAD_STEPS:
        raise HeadwaterError(
            f"loss or gradient at step {step}",
            f"was not finite {bad} times in a row",
            "lower pretrain.lr (or raise pretrain.warmup, or set pretrain.precision: fp32); "
            f"the samples are listed in {run.work / 'bad_steps.jsonl'}",
        )


def _trim_log(path: Path, step: int) -> None:
    """Drop lines at or after ``step``: they are about to be written again."""
    lines = [r for r in read_lines(path) if r["step"] < step]
    write_bytes(path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in lines).encode())


def _loop(run: Run, report: Reporter) -> None:
    p, start = run.cfg.pretrain, run.restore()
    log, main = run.work / "log.jsonl", dist.rank() == 0
    if main:
        _trim_log(log, start)
    model = DistributedDataParallel(run.method) if dist.active() else run.method
    run.method.train()
    per_step = p.batch_size * dist.world()
    bad = 0
    batches = run.reader.batches(p.batch_size, start, run.steps - start)
    with (
        report.bar(run.steps * per_step, "img", start * per_step) as advance,
        contextlib.closing(batches),
    ):
        for step, (indices, images) in enumerate(batches, start):
            loss, metrics = _forward(run, model, images, step)
            norm = _update(run, loss, step)
            bad = 0 if math.isfinite(norm) else bad + 1
            if bad:
                _note_bad(run, step, indices, bad)
            row = {"loss": float(loss.detach()), "grad_norm": norm} | {
                k: float(v) for k, v in metrics.items()
            }
            if main:
                append_line(log, {"step": step, "lr": run.optimizer.param_groups[0]["lr"], **row})
                if (step + 1) % p.checkpoint_steps == 0 or step + 1 == run.steps:
                    checkpoints.save(run.work, step + 1, run.state())
            advance(per_step, **row)


def fit(cfg: Config, shards: Path, work: Path, report: Reporter) -> nn.Module:
    """Train in this process (one rank); returns the method with its encoder.

    ``work`` holds checkpoints and the log; an interrupted call continues where it stopped.

    Raises:
        HeadwaterError: three non-finite steps in a row, or an unknown method or option.
    """
    run = build(cfg, shards, work)
    _loop(run, report)
    return run.method


def export(method: nn.Module, cfg: Config, folder: Path) -> None:
    """Write encoder.safetensors and encoder.json."""
    meta = {
        "image_size": cfg.pretrain.image_size,
        "mean": list(MEAN),
        "std": list(STD),
        "method": cfg.pretrain.method,
    }
    folder.mkdir(parents=True, exist_ok=True)
    models.save(method.encoder, folder, meta)  # type: ignore[arg-type]


def launch(cfg: Config, shards: Path, work: Path, processes: int) -> None:
    """Train under torchrun with ``processes`` ranks on this machine and wait.

    Raises:
        HeadwaterError: a rank failed.
    """
    write_json(
        work / "job.json",
        {"config": cfg.model_dump(mode="json", by_alias=True), "shards": str(shards)},
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "ssl_core.train",
        str(work),
    ]
    if (code := subprocess.call(command)) != 0:
        raise HeadwaterError(
            f"torchrun with {processes} processes",
            f"ended with exit code {code}",
            "read the rank's traceback above; run again to continue from the last checkpoint",
        )


def worker(work: Path) -> None:
    """What each torchrun rank runs."""
    job = read_json(work / "job.json")
    cfg = Config.model_validate(job["config"])
    dist.setup(device())
    try:
        with Reporter("pretrain") as report:
            method = fit(cfg, Path(job["shards"]), work, report)
            if dist.rank() == 0:
                export(method, cfg, work / "final")
    finally:
        dist.teardown()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
