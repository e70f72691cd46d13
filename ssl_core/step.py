"""One optimiser step, on one batch or on parts of it.

Everything random in it is a pure function of (seed, number of the part, rank).
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import dist, distribute, feed, sam
from .errors import HeadwaterError
from .feed import Batch
from .job import Run, step_seed
from .optim import learning_rate

CLIP = 3.0  # largest gradient norm


@dataclass
class Part:
    """What one pass through the method takes."""

    views: list[Tensor]
    inputs: dict[str, Any]  # what else the method wants
    weights: Tensor | None  # (B,) of the images, for rwSAM


def set_rates(run: Run, step: int) -> None:
    """Learning rate and weight decay of this step."""
    p, o = run.cfg.pretrain, run.options
    lr = learning_rate(step, run.steps, run.peak, p.warmup) * run.factor
    for group in run.optimizer.param_groups:
        group["lr"] = lr
        if o.weight_decay_end is not None and p.weight_decay is None and group["decays"]:
            share = (1 - math.cos(math.pi * step / run.steps)) / 2
            group["weight_decay"] = o.weight_decay + (o.weight_decay_end - o.weight_decay) * share


def _part(run: Run, batch: Batch, number: int) -> Part:
    rows, images = batch
    views, boxes = feed.views(run, images, number)
    given = {"boxes": boxes, "labels": run.labels[rows].to(run.device)}
    wanted = {k: v for k, v in given.items() if k in getattr(run.method, "wants", ())}
    weights = None if run.weights is None else run.weights[rows].to(run.device)
    return Part(views, wanted, weights)


def joined(parts: list[Part]) -> Part:
    """The whole batch: every tensor (B, ...) -> (parts*B, ...)."""
    views = [torch.cat(views) for views in zip(*(p.views for p in parts), strict=True)]
    inputs: dict[str, Any] = {}
    for name, first in parts[0].inputs.items():
        found = [p.inputs[name] for p in parts]
        lists = isinstance(first, list)
        inputs[name] = (
            [torch.cat(x) for x in zip(*found, strict=True)] if lists else torch.cat(found)
        )
    weights = [p.weights for p in parts if p.weights is not None]
    return Part(views, inputs, torch.cat(weights) if weights else None)


def parts(run: Run, batches: Sequence[Batch], step: int) -> list[Part]:
    """Views and inputs of a step's batches: one part, or as many if gradients may be added."""
    first = step * len(batches)
    found = [_part(run, batch, number) for number, batch in enumerate(batches, first)]
    return found if len(found) == 1 or run.by_parts else [joined(found)]


def forward(
    run: Run, part: Part, step: int, weighted: bool = False
) -> tuple[Tensor, dict[str, Any]]:
    """Loss and monitors of one pass; ``weighted`` lets the method weigh images."""
    more = {"weights": part.weights} if weighted and part.weights is not None else {}
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16):
        loss, metrics = run.model(part.views, step, **part.inputs, **more)
    return loss, metrics


def gradients(
    run: Run, parts: list[Part], step: int, weighted: bool = False
) -> tuple[Tensor, dict[str, Any]]:
    """Loss and monitors, means over parts; fresh gradients in the parameters."""
    run.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(step_seed(run.cfg.seed, step, dist.rank()))
    losses, seen = [], []
    for part in parts:
        last = part is parts[-1]
        with contextlib.nullcontext() if last else distribute.unsynchronised(run.model):
            loss, metrics = forward(run, part, step, weighted)
            (loss / len(parts)).backward()
        losses.append(loss.detach())
        seen.append(metrics)
    means = {k: sum(m[k] for m in seen) / len(seen) for k in seen[0]}  # no float: a GPU would wait
    return torch.stack(losses).mean(), means


def _sharp_gradients(run: Run, parts: list[Part], step: int) -> tuple[Tensor, dict[str, Any]]:
    """SAM: gradients at the worst place near by; rwSAM seeks it with rare images foremost."""
    found = gradients(run, parts, step, weighted=True)
    live = [p for p in run.method.parameters() if p.requires_grad]
    with sam.at_the_worst(live, run.cfg.pretrain.sam.radius), sam.still_buffers(run.method):
        gradients(run, parts, step)
    return found


def take(run: Run, batches: list[Batch], step: int) -> tuple[float, float, dict[str, Any]]:
    """One step; returns loss, gradient norm and monitors. A non-finite one changes nothing.

    Gradients are already averaged over ranks here, so all ranks decide alike.
    """
    set_rates(run, step)
    before = [buffer.clone() for buffer in run.method.buffers()]
    span = run.telemetry.span
    with span("augment"):
        found = parts(run, batches, step)
    sharp = run.cfg.pretrain.sam.radius > 0
    if run.telemetry.flops is None:
        run.telemetry.set_flops(flops(run, found, step) * (2 if sharp else 1))
        run.telemetry.begin()
    with span("forward_backward"):
        loss, metrics = (_sharp_gradients if sharp else gradients)(run, found, step)
    with span("optimiser"):
        norm = _update(run, step, before)
    return float(loss), float(norm), metrics


def flops(run: Run, parts: list[Part], step: int) -> int:
    """Floating-point operations of a step's passes, forward and backward, without augmentation.

    Counted in a pass of its own that leaves nothing behind: under the counter, operations may
    run by other kernels, and a run that was resumed counts at another step.
    """
    from torch.utils.flop_counter import FlopCounterMode

    before = [buffer.clone() for buffer in run.method.buffers()]
    torch.manual_seed(step_seed(run.cfg.seed, step, dist.rank()))
    # Nothing is compiled before torch._dynamo is imported, which takes seconds.
    compiled = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with eager, FlopCounterMode(display=False) as counter:
        loss, _ = forward(run, parts[0], step)
        loss.backward()
    run.optimizer.zero_grad(set_to_none=True)
    for buffer, value in zip(run.method.buffers(), before, strict=True):
        buffer.copy_(value)
    return int(counter.get_total_flops() * len(parts))


def too_large(run: Run, error: torch.OutOfMemoryError) -> HeadwaterError:
    """What to do about a step that the device has no memory for."""
    p = run.cfg.pretrain
    said = str(error).split(". ")[0]
    return HeadwaterError(
        f"pretrain.batch_size {p.batch_size}",
        f"does not fit into the memory of this GPU ({said})",
        "lower it and raise pretrain.accumulate as much, or set pretrain.activation_checkpointing: "
        "true, pretrain.precision: bf16 or, over several GPUs, pretrain.parallel: fsdp",
    )


def _update(run: Run, step: int, before: list[Tensor]) -> Tensor:
    """Move weights and teacher, or nothing if the gradient is not finite; the gradient's norm."""
    live = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = dist.whole(nn.utils.clip_grad_norm_(live, CLIP))
    if torch.isfinite(norm):
        run.optimizer.step()
        run.method.after_step(step)  # type: ignore[operator]
    else:  # batch norm has seen the bad batch
        for buffer, value in zip(run.method.buffers(), before, strict=True):
            buffer.copy_(value)
    return norm
