"""The training loop: one for all methods, one or many processes, resumable to the bit on CPU.

Everything random in a step is a pure function of (seed, step, rank): the reader's batch, the
augmentation's generator and torch's global generator, which is re-seeded before each step. So
a checkpoint needs no generator state, and a resumed run repeats the lost steps exactly.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import checkpoints, dist, distribute, feed, models, preemption, step
from .artifacts import append_line, read_lines, write_bytes
from .checkpoint_writer import Writer
from .checkpoints import Note
from .config import Config
from .errors import HeadwaterError
from .feed import Batch
from .guard import Trouble
from .job import ROLLBACKS, Run, build
from .lock import exclusive
from .parallel import keep_memory
from .preemption import Preempted, Stop
from .progress import Reporter

LOG, BAD = "log.jsonl", "bad_steps.jsonl"  # in the work folder


def _trim_log(path: Path, samples: int) -> None:
    """Drop lines of steps that end after ``samples``: they are about to be written again."""
    lines = [r for r in read_lines(path) if r["samples"] <= samples]
    write_bytes(path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in lines).encode())


def _batches(run: Run, start: int) -> Generator[list[Batch], None, None]:
    """What each step from ``start`` to the end takes: ``accumulate`` batches of this rank."""
    p = run.cfg.pretrain
    count = p.accumulate
    number = (run.steps - start) * count
    read = run.reader.batches(p.batch_size, start * count, number, run.offset)
    span = run.telemetry.span
    with contextlib.closing(feed.stream(run, read, start * count)) as batches:
        while True:
            with span("wait"):
                found = list(islice(batches, count))
            if not found:
                return
            yield found


def _save(run: Run, writer: Writer, done: int) -> None:
    """Begin to save the state after ``done`` steps."""
    writer.save(run.samples(done), run.tensors(), run.facts(done))


def _judge(run: Run, number: int, batches: list[Batch], row: dict[str, float]) -> None:
    """Let the guard see this step.

    Raises:
        Trouble: as it says.
    """
    p = run.cfg.pretrain
    try:
        run.guard.step(number, row["grad_norm"])
    finally:
        if run.guard.bad:
            rows = np.concatenate([rows for rows, _ in batches])
            keys = run.reader.frame["key"].iloc[rows].tolist()
            append_line(run.work / BAD, {"step": number, "samples": keys})
    looks = (number + 1) % p.check_steps == 0 or _saves(run, number)
    if looks and not run.guard.bad and run.features is not None:
        run.guard.look(number, run.features, row["loss"], row)


def _saves(run: Run, number: int) -> bool:
    """Whether the state is saved after step ``number`` if all is well."""
    done = number + 1
    return done % run.cfg.pretrain.checkpoint_steps == 0 or done == run.steps


def _stretch(run: Run, writer: Writer, stop: Stop, report: Reporter, start: int) -> None:
    """Train from step ``start`` to the end.

    Raises:
        Trouble: the guard has seen enough.
        Preempted: a signal came; the state is saved.
        HeadwaterError: a checkpoint could not be written.
    """
    log, main = run.work / LOG, dist.rank() == 0
    if main:
        _trim_log(log, run.samples(start))
    run.method.train()
    run.telemetry.begin()
    end, first = run.samples(run.steps), run.samples(start)
    with report.bar(end, "img", first) as advance, contextlib.closing(_batches(run, start)) as it:
        for number, batches in enumerate(it, start):
            loss, norm, metrics = step.take(run, batches, number)
            row = {"loss": loss, "grad_norm": norm} | {k: float(v) for k, v in metrics.items()}
            if main:
                lr, done = run.optimizer.param_groups[0]["lr"], run.samples(number + 1)
                append_line(log, {"step": number, "samples": done, "lr": lr, **row})
            _judge(run, number, batches, row)
            advance(run.batch, **row, **run.telemetry.short())
            writer.check()
            last = number + 1 == run.steps
            signal = 0 if last else stop.agreed()
            if signal or (_saves(run, number) and (run.guard.healthy or last)):
                with run.telemetry.span("checkpoint"):
                    _save(run, writer, number + 1)
            run.telemetry.end_step(number, run.batch)
            if signal:
                _leave(run, writer, report, number + 1, signal)
    writer.wait()


def _leave(run: Run, writer: Writer, report: Reporter, done: int, signal: int) -> None:
    """Wait for the state to be on disk, and end.

    Raises:
        Preempted: always.
    """
    writer.wait()
    stopped = Preempted(signal)
    report.log(
        f"stopped by {stopped.signal.name} after step {done} of {run.steps}; the state is saved, "
        "nothing else is written: run the same command again to continue"
    )
    raise stopped


def _go_back(run: Run, writer: Writer, trouble: Trouble, report: Reporter) -> int:
    """The step to go on from, with half the learning rate.

    Raises:
        HeadwaterError: training has gone back often enough.
    """
    writer.wait()
    if len(read_lines(run.work / ROLLBACKS)) >= run.cfg.pretrain.rollbacks:
        samples = run.work / BAD
        seen = f"; samples of such steps are in {samples}" if samples.exists() else ""
        raise HeadwaterError(trouble.what, trouble.rule, trouble.fix + seen) from trouble
    dist.barrier()  # all ranks have counted before one writes
    if dist.rank() == 0 and (note := checkpoints.latest(run.work, healthy=True)):
        checkpoints.forget_after(run.work, note.samples)
        back = {"step": trouble.step, "to": note.samples // run.batch, "why": trouble.rule}
        append_line(run.work / ROLLBACKS, back)
    dist.barrier()
    start, _ = run.restore(healthy=True)
    report.log(f"{trouble}. Going back to step {start} with half the learning rate")
    return start


def fit(cfg: Config, shards: Path, work: Path, report: Reporter) -> nn.Module:
    """Train in this process (one rank); returns the method with its encoder.

    ``work`` holds checkpoints and the log; an interrupted call continues where it stopped.

    Raises:
        HeadwaterError: the guard saw trouble more often than ``pretrain.rollbacks``, a
            checkpoint could not be written, a step does not fit into the GPU's memory, or an
            unknown method or option.
        Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    keep_memory()
    # An orphan of a killed launcher may still be training here: wait for it.
    alone = exclusive(work / "lock") if dist.rank() == 0 else contextlib.nullcontext()
    with preemption.watched() as stop, alone:
        run = build(cfg, shards, work)
        saving = Writer(work, cfg.pretrain.parallel == "fsdp")
        with contextlib.closing(run.telemetry), contextlib.closing(saving) as writer:
            start = _begin(run, writer, report)
            while True:
                try:
                    _stretch(run, writer, stop, report, start)
                    break
                except Trouble as trouble:
                    start = _go_back(run, writer, trouble, report)
                except torch.OutOfMemoryError as error:
                    raise step.too_large(run, error) from error
        _choose(run, report)
        return run.method


def _begin(run: Run, writer: Writer, report: Reporter) -> int:
    """The step to start at."""
    start, note = run.restore()
    if note is None:
        _save(run, writer, 0)  # to go back to
    elif note.facts["batch"] != run.batch:
        report.log(
            f"continuing at image {note.samples} with {run.batch} instead of "
            f"{note.facts['batch']} images in a step"
        )
    return start


def _choose(run: Run, report: Reporter) -> None:
    """Load the best checkpoint if it is to be exported."""
    if run.cfg.pretrain.export == "last":
        return
    note: Note | None = checkpoints.best(run.work) if dist.rank() == 0 else None
    samples = dist.of_first(-1 if note is None else note.samples)
    if samples >= 0:
        run.load(checkpoints.at(run.work, samples))
        report.log(f"exporting the encoder at image {samples}, whose features have the best rank")


def export(method: nn.Module, cfg: Config, folder: Path) -> None:
    """Write encoder.safetensors and encoder.json (rank 0; all ranks must call)."""
    encoder = distribute.gathered(method.encoder)  # type: ignore[arg-type]
    if dist.rank():
        return
    mean, std = models.normalisation(encoder.channels)
    meta = {
        "image_size": cfg.pretrain.image_size,
        "mean": list(mean),
        "std": list(std),
        "method": cfg.pretrain.method,
    }
    folder.mkdir(parents=True, exist_ok=True)
    models.save(encoder, folder, meta)
