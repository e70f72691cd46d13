"""The training step against lightly's loop: same model, batch, views, optimiser and head sizes.

``python -m benchmarks.step`` takes a ViT-Ti/16 at 224 px on the CPU: SimCLR (2 x 224), DINO
(2 x 224 + 6 x 96, 65,536 prototypes) and MAE (75 % hidden, decoder 512 wide and 8 deep). Views
are ready tensors, so nothing but the step is timed. fp32 on both sides, and bf16 autocast on both
where the CPU has it. On a GPU it takes a ViT-S/16 and batch 256, and bf16 only. ``--compile``
measures ``pretrain.compile`` alone.

Beside the rates stands how far any implementation could go that does the same products of
matrices: their FLOPs over what this machine reaches on such products, alone (``bound``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_core import compilation, models, optim, plugins
from ssl_core.types import Task

from . import _common, _peers

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A step to be measured; ``size``: parameters that are trained."""

    step: Step
    bf16: bool
    size: int


HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 512, "out": 128, "layers": 2},
    "dino": {"hidden": 2048, "bottleneck": 256, "prototypes": 65536, "locals_": 6},
    "mae": {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16, "norm_pix": False},
}
VIEWS = {"simclr": (2, 0), "dino": (2, 6), "mae": (1, 0)}
# On a CPU others may be at work: what counts are this process's seconds, of all its threads.
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
CLIP = 3.0  # our step also measures and clips the gradient; lightly's loop does not


def views(method: str, batch: int, device: torch.device) -> list[Tensor]:
    """Global views of 224 px and local ones of 96 px, (B, 3, S, S) each."""
    counts = zip(VIEWS[method], (224, 96), strict=True)
    return [torch.randn(batch, 3, s, s, device=device) for n, s in counts for _ in range(n)]


def ours(
    method: str,
    backbone: str,
    given: list[Tensor],
    bf16: bool,
    packing: bool,
    compiled: bool = False,
) -> Case:
    """The inner part of ``ssl_core.step.take``: loss, gradient, clipping, optimiser, teacher."""
    device = given[0].device
    plugin = plugins.load("methods", method)
    encoder = models.create(backbone)
    encoder.packing = packing
    built = plugin.Method(encoder, plugin.Config(**HEADS[method]), Task(224, 1000)).to(device)
    if compiled:
        compilation.apply(built, device)
    optimizer = optim.create(built, "adamw", _peers.LR, _peers.DECAY, (0.9, 0.999))
    live = [p for p in built.parameters() if p.requires_grad]
    number = iter(range(500, 10**9))  # after the steps in which DINO's prototypes stand still

    def step() -> Tensor:
        n = next(number)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = built(given, n)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(live, CLIP)
        optimizer.step()
        built.after_step(n)
        return loss.detach()  # type: ignore[no-any-return]

    return Case(step, bf16, _size(built))


def theirs(method: str, backbone: str, given: list[Tensor], bf16: bool) -> Case:
    """lightly's loop."""
    h = HEADS[method]
    model: nn.Module
    if method == "simclr":
        model = _peers.SimCLR(backbone, h["hidden"], h["out"])
    elif method == "dino":
        model = _peers.DINO(backbone, h["hidden"], h["bottleneck"], h["prototypes"])
    else:
        model = _peers.MAE(backbone, h["decoder_dim"], h["decoder_depth"], h["decoder_heads"])
    model.to(given[0].device).train()
    optimizer = _peers.optimizer(model)
    return Case(lambda: _peers.step(model, optimizer, given, bf16), bf16, _size(model))


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def precisions(gpu: bool) -> tuple[bool, ...]:
    """Whether to use bf16: always on a GPU, also on a CPU that computes in it."""
    if gpu:
        return (True,)
    return (False, True) if torch.cpu.get_capabilities().get("avx512_bf16") else (False,)


def cases(method: str, backbone: str, given: list[Tensor]) -> dict[str, Case]:
    """Both sides in the precisions that the device is used with."""
    found = {}
    packings = (False, True) if VIEWS[method][1] else (False,)
    for bf16 in precisions(given[0].is_cuda):
        kind = ", bf16" if bf16 else ", fp32"
        found[f"lightly{kind}"] = theirs(method, backbone, given, bf16)
        for packing in packings:
            name = f"headwater{', packed' if packing else ''}{kind}"
            found[name] = ours(method, backbone, given, bf16, packing)
    sizes = {case.size for case in found.values()}
    if max(sizes) > 1.002 * min(sizes):  # MAE: lightly's encoder positions are fixed, ours learn
        raise ValueError(f"{method}: models of {sizes} parameters are not the same")
    return found


def flops(step: Step) -> float:
    """Floating-point operations of its matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def peak(device: torch.device, bf16: bool, tokens: int) -> float:
    """FLOP/s on one large product, (tokens, 512) @ (512, 2048): the best decile of 20 tries.

    A ViT-Ti's own products are narrower and slower: no step of one gets near this rate.
    """
    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(*s, device=device, dtype=kind) for s in ((tokens, 512), (512, 2048)))
    rates = []
    for _ in range(20):
        _common.synchronise()
        start = CLOCK()
        for _ in range(3):
            a @ b
        _common.synchronise()
        rates.append(3 * 2 * tokens * 512 * 2048 / (CLOCK() - start))
    return statistics.quantiles(rates, n=10)[-1]


def shares(step: Step, top: int = 8) -> dict[str, float]:
    """Share of a step's time in each kind of operation, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        step()
    times = {e.key: float(getattr(e, key)) for e in found.key_averages()}
    whole = sum(times.values())
    best = sorted(times.items(), key=lambda item: -item[1])[:top]
    return {name.removeprefix("aten::"): round(t / whole, 3) for name, t in best}


def one(method: str, batch: int, rounds: int, device: torch.device) -> tuple[list[Any], Any]:
    """Rows of one method, and what holds it."""
    gpu = device.type == "cuda"
    backbone = "vit_small_patch16_224" if gpu else "vit_tiny_patch16_224"
    torch.manual_seed(0)
    given = views(method, batch, device)
    steps = cases(method, backbone, given)

    def work(case: Case) -> _common.Work:
        return lambda: (case.step(), batch)[1]

    base = next(iter(steps))
    ready = {name: work(case) for name, case in steps.items()}
    counts = {name: flops(case.step) for name, case in steps.items()}  # also warms up
    best = {kind: peak(device, kind, 197 * batch) for kind in {c.bf16 for c in steps.values()}}
    rows = _common.compare(method, ready, base, rounds, warmup=2 * gpu, clock=CLOCK)
    limits = {
        row.case: limit(steps[row.case], counts[row.case], batch / row.median, best) for row in rows
    }
    return rows, limits


def limit(case: Case, work: float, seconds: float, best: dict[bool, float]) -> dict[str, Any]:
    """What a step computes, what that takes at the machine's best, and where its time goes."""
    fastest = best[case.bf16]
    return {
        "trained_parameters": case.size,
        "gflop": round(work / 1e9, 1),
        "products_gflops_per_s": round(fastest / 1e9, 1),
        "step_s": round(seconds, 3),
        "bound_s": round(work / fastest, 3),
        "share_of_bound": round(work / fastest / seconds, 2),
        "time": shares(case.step),
    }


def compiling(batch: int, rounds: int, device: torch.device) -> None:
    """``pretrain.compile`` on against off: a ViT-S/16 under SimCLR, ``results/compile.json``."""
    given = views("simclr", batch, device)
    plain, fast = (
        ours("simclr", "vit_small_patch16_224", given, device.type == "cuda", False, compiled)
        for compiled in (False, True)
    )
    began = time.perf_counter()
    fast.step()
    first = time.perf_counter() - began
    works: dict[str, _common.Work] = {
        "off": lambda: (plain.step(), batch)[1],
        "on": lambda: (fast.step(), batch)[1],
    }
    rows = _common.compare("SimCLR 2×224, ViT-S/16", works, "off", rounds, clock=CLOCK)
    name, title = "compile_gpu" if device.type == "cuda" else "compile", "pretrain.compile"
    _common.report(name, title, rows, batch=batch, first_compiled_step_s=round(first, 1))


def main() -> None:
    """Print the table and write ``results/step.json`` and ``.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(VIEWS), choices=list(VIEWS))
    parser.add_argument("--batch", type=int, help="images per step (CPU: 4, GPU: 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="only what torch.compile brings")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.compile:
        compiling(args.batch or 2, args.rounds, device)
        return
    gpu = device.type == "cuda"
    batch = args.batch or (256 if gpu else 4)
    rows: list[_common.Row] = []
    limits = {}
    for method in args.methods:  # a run that is cut keeps what it has
        found, limits[method] = one(method, batch, args.rounds, device)
        rows += found
        _common.report(
            "step_gpu" if gpu else "step",
            "Training step against lightly's loop",
            rows,
            batch=batch,
            clock="wall" if gpu else "CPU seconds of the process: the machine was shared",
            views="as ready tensors: simclr 2 x 224, dino 2 x 224 + 6 x 96, mae 1 x 224",
            peers=_common.versions("lightly"),
            limits=limits,
            published="stable-pretraining, ViT-S/16, 2 x 224, batch 256, one H200: 870.9 img/s",
        )


if __name__ == "__main__":
    main()
