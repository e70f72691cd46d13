"""The training loop: one for all methods, one or many processes, resumable to the bit on CPU.

Everything random in a step is a pure function of (seed, step, rank): the reader's batch, the
augmentation's generator and torch's global generator, which is re-seeded before each step. So
a checkpoint needs no generator state, and a resumed run repeats the lost steps exactly.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoints, dist, models, sam
from .artifacts import append_line, read_json, read_lines, write_bytes, write_json
from .config import Config
from .errors import HeadwaterError
from .guard import Trouble
from .job import ROLLBACKS, Run, build, device, learning_rate, step_seed
from .progress import Reporter

CLIP = 3.0  # largest gradient norm


def _set_rates(run: Run, step: int) -> None:
    """Learning rate and weight decay of this step."""
    p, o = run.cfg.pretrain, run.options
    lr = learning_rate(step, run.steps, run.peak, p.warmup) * run.factor
    for group in run.optimizer.param_groups:
        group["lr"] = lr
        if o.weight_decay_end is not None and p.weight_decay is None and group["decays"]:
            share = (1 - math.cos(math.pi * step / run.steps)) / 2
            group["weight_decay"] = o.weight_decay + (o.weight_decay_end - o.weight_decay) * share


Inputs = dict[str, Any]


def _inputs(run: Run, rows: Any, images: Tensor, step: int) -> tuple[list[Tensor], Inputs]:
    """The views of a batch and what else the method wants."""
    generator = torch.Generator(run.device)
    generator.manual_seed(step_seed(run.cfg.seed, step, dist.rank()))
    views, boxes = run.augment.with_boxes(images.to(run.device, non_blocking=True), generator)
    given = {"boxes": boxes, "labels": run.labels[rows].to(run.device)}
    return views, {k: v for k, v in given.items() if k in getattr(run.method, "wants", ())}


def _gradients(
    run: Run, model: nn.Module, views: list[Tensor], inputs: Inputs, step: int
) -> tuple[Tensor, dict[str, Any]]:
    """Loss and monitors; fresh gradients in the parameters."""
    torch.manual_seed(step_seed(run.cfg.seed, step, dist.rank()))
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16):
        loss, metrics = model(views, step, **inputs)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach(), metrics


def _sharp_gradients(
    run: Run, model: nn.Module, views: list[Tensor], inputs: Inputs, rows: Any, step: int
) -> tuple[Tensor, dict[str, Any]]:
    """SAM: gradients at the worst place near by; rwSAM seeks it with rare images foremost."""
    heavy = {} if run.weights is None else {"weights": run.weights[rows].to(run.device)}
    found = _gradients(run, model, views, inputs | heavy, step)
    live = [p for p in run.method.parameters() if p.requires_grad]
    with sam.at_the_worst(live, run.cfg.pretrain.sam.radius), sam.still_buffers(run.method):
        _gradients(run, model, views, inputs, step)
    return found


def one_step(
    run: Run, model: nn.Module, rows: Any, images: Tensor, step: int
) -> tuple[float, float, dict[str, Any]]:
    """One step; returns loss, gradient norm and monitors. A non-finite one changes nothing.

    Gradients are already averaged over ranks here, so all ranks decide alike.
    """
    _set_rates(run, step)
    before = [buffer.clone() for buffer in run.method.buffers()]
    views, inputs = _inputs(run, rows, images, step)
    if run.cfg.pretrain.sam.radius:
        loss, metrics = _sharp_gradients(run, model, views, inputs, rows, step)
    else:
        loss, metrics = _gradients(run, model, views, inputs, step)
    live = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(live, CLIP)
    if torch.isfinite(norm):
        run.optimizer.step()
        run.method.after_step(step)  # type: ignore[operator]
    else:  # batch norm has seen the bad batch
        for buffer, value in zip(run.method.buffers(), before, strict=True):
            buffer.copy_(value)
    return float(loss), float(norm), metrics


def _note_bad(run: Run, step: int, rows: Any) -> None:
    keys = run.reader.frame["key"].iloc[rows].tolist()
    append_line(run.work / "bad_steps.jsonl", {"step": step, "samples": keys})


def _trim_log(path: Path, step: int) -> None:
    """Drop lines at or after ``step``: they are about to be written again."""
    lines = [r for r in read_lines(path) if r["step"] < step]
    write_bytes(path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in lines).encode())


def _judge(run: Run, step: int, rows: Any, row: dict[str, float]) -> None:
    """Let the guard see this step.

    Raises:
        Trouble: as it says.
    """
    saves = (step + 1) % run.cfg.pretrain.checkpoint_steps == 0 or step + 1 == run.steps
    try:
        run.guard.step(step, row["grad_norm"])
    finally:
        if run.guard.bad:
            _note_bad(run, step, rows)
    looks = (step + 1) % run.cfg.pretrain.check_steps == 0 or saves
    if looks and not run.guard.bad and run.features is not None:
        run.guard.look(step, run.features, row["loss"], row)
    if dist.rank() == 0 and saves and (run.guard.healthy or step + 1 == run.steps):
        checkpoints.save(run.work, step + 1, run.state())


def _stretch(run: Run, model: nn.Module, report: Reporter, start: int) -> None:
    """Train from step ``start`` to the end.

    Raises:
        Trouble: the guard has seen enough.
    """
    p, log, main = run.cfg.pretrain, run.work / "log.jsonl", dist.rank() == 0
    if main:
        _trim_log(log, start)
    run.method.train()
    per_step = p.batch_size * dist.world()
    batches = run.reader.batches(p.batch_size, start, run.steps - start)
    with (
        report.bar(run.steps * per_step, "img", start * per_step) as advance,
        contextlib.closing(batches),
    ):
        for step, (rows, images) in enumerate(batches, start):
            loss, norm, metrics = one_step(run, model, rows, images, step)
            row = {"loss": loss, "grad_norm": norm} | {k: float(v) for k, v in metrics.items()}
            if main:
                append_line(log, {"step": step, "lr": run.optimizer.param_groups[0]["lr"], **row})
            _judge(run, step, rows, row)
            advance(per_step, **row)


def _go_back(run: Run, trouble: Trouble, report: Reporter) -> int:
    """The step to go on from, with half the learning rate.

    Raises:
        HeadwaterError: training has gone back often enough.
    """
    if len(read_lines(run.work / ROLLBACKS)) >= run.cfg.pretrain.rollbacks:
        samples = run.work / "bad_steps.jsonl"
        seen = f"; samples of such steps are in {samples}" if samples.exists() else ""
        raise HeadwaterError(trouble.what, trouble.rule, trouble.fix + seen) from trouble
    dist.barrier()  # all ranks have counted before one writes
    step = run.restore()
    if dist.rank() == 0:
        append_line(run.work / ROLLBACKS, {"step": trouble.step, "to": step, "why": trouble.rule})
    dist.barrier()
    report.log(f"{trouble}. Going back to step {step} with half the learning rate")
    return step


def fit(cfg: Config, shards: Path, work: Path, report: Reporter) -> nn.Module:
    """Train in this process (one rank); returns the method with its encoder.

    ``work`` holds checkpoints and the log; an interrupted call continues where it stopped.

    Raises:
        HeadwaterError: the guard saw trouble more often than ``pretrain.rollbacks``, or an
            unknown method or option.
    """
    run = build(cfg, shards, work)
    start = run.restore()
    if dist.rank() == 0 and not start:
        checkpoints.save(work, 0, run.state())  # to go back to
    model = DistributedDataParallel(run.method) if dist.active() else run.method
    while True:
        try:
            _stretch(run, model, report, start)
            return run.method
        except Trouble as trouble:
            start = _go_back(run, trouble, report)


def export(method: nn.Module, cfg: Config, folder: Path) -> None:
    """Write encoder.safetensors and encoder.json."""
    encoder: models.Encoder = method.encoder  # type: ignore[assignment]
    mean, std = models.normalisation(encoder.channels)
    meta = {
        "image_size": cfg.pretrain.image_size,
        "mean": list(mean),
        "std": list(std),
        "method": cfg.pretrain.method,
    }
    folder.mkdir(parents=True, exist_ok=True)
    models.save(encoder, folder, meta)


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
