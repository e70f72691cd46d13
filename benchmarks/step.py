"""The training step against lightly's loop: same model, batch, views, optimiser and head sizes.

``python -m benchmarks.step`` takes a ViT-Ti/16 at 224 px on the CPU: SimCLR (2 x 224), DINO
(2 x 224 + 6 x 96, 65,536 prototypes) and MAE (75 % hidden, decoder 512 wide and 8 deep). Views
are ready tensors, so nothing but the step is timed. On a GPU it takes a ViT-S/16, batch 256, bf16.

Beside the rates stands how far any implementation could go that does the same products of
matrices: their FLOPs over what this machine reaches on such products, alone (``bound``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_core import models, optim, plugins
from ssl_core.types import Task

from . import _common, _peers

Step = Callable[[], Tensor]
HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 512, "out": 128, "layers": 2},
    "dino": {"hidden": 2048, "bottleneck": 256, "prototypes": 65536, "locals_": 6},
    "mae": {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16, "norm_pix": False},
}
VIEWS = {"simclr": (2, 0), "dino": (2, 6), "mae": (1, 0)}
CLIP = 3.0  # our step also measures and clips the gradient; lightly's loop does not


def views(method: str, batch: int, device: torch.device) -> list[Tensor]:
    """Global views of 224 px and local ones of 96 px, (B, 3, S, S) each."""
    counts = zip(VIEWS[method], (224, 96), strict=True)
    return [torch.randn(batch, 3, s, s, device=device) for n, s in counts for _ in range(n)]


def ours(method: str, backbone: str, given: list[Tensor], bf16: bool, packing: bool) -> Step:
    """The inner part of ``ssl_core.step.take``: loss, gradient, clipping, optimiser, teacher."""
    device = given[0].device
    plugin = plugins.load("methods", method)
    encoder = models.create(backbone)
    encoder.packing = packing
    built = plugin.Method(encoder, plugin.Config(**HEADS[method]), Task(224, 1000)).to(device)
    optimizer = optim.create(built, "adamw", 1e-4, 0.05, (0.9, 0.999))
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

    return step


def theirs(method: str, backbone: str, given: list[Tensor], bf16: bool) -> Step:
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
    return lambda: _peers.step(model, optimizer, given, bf16)


def flops(step: Step) -> float:
    """Floating-point operations of its matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def peak(device: torch.device, bf16: bool, tokens: int) -> float:
    """FLOP/s on the products of a ViT-Ti's MLP, the best of a few: (tokens, 192) @ (192, 768)."""
    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(*s, device=device, dtype=kind) for s in ((tokens, 512), (512, 2048)))
    rates = []
    for _ in range(20):
        _common.synchronise()
        start = time.perf_counter()
        for _ in range(3):
            a @ b
        _common.synchronise()
        rates.append(3 * 2 * tokens * 512 * 2048 / (time.perf_counter() - start))
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
    steps = {"lightly": theirs(method, backbone, given, gpu)}
    steps["headwater"] = ours(method, backbone, given, gpu, packing=False)
    if method == "dino":
        steps["headwater, packed"] = ours(method, backbone, given, gpu, packing=True)

    def work(step: Step) -> _common.Work:
        return lambda: (step(), batch)[1]

    cases = {name: work(step) for name, step in steps.items()}
    rows = _common.compare(method, cases, "lightly", rounds, warmup=2 if gpu else 1)
    best = peak(device, gpu, 197 * batch)
    limits: dict[str, Any] = {"products_gflops_per_s": round(best / 1e9, 1)}
    for row in rows:
        work_ = flops(steps[row.case])
        seconds = batch / row.median
        limits[row.case] = {
            "gflop": round(work_ / 1e9, 1),
            "step_s": round(seconds, 3),
            "bound_s": round(work_ / best, 3),
            "share_of_bound": round(work_ / best / seconds, 2),
            "time": shares(steps[row.case]),
        }
    return rows, limits


def main() -> None:
    """Print the table and write ``results/step.json`` and ``.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(VIEWS), choices=list(VIEWS))
    parser.add_argument("--batch", type=int, help="images per step (CPU: 4, GPU: 256)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    batch = args.batch or (256 if gpu else 4)
    rows, limits = [], {}
    for method in args.methods:
        found, limits[method] = one(method, batch, args.rounds, device)
        rows += found
    import lightly

    _common.report(
        "step_gpu" if gpu else "step",
        "Training step against lightly's loop",
        rows,
        batch=batch,
        views="as ready tensors: simclr 2 x 224, dino 2 x 224 + 6 x 96, mae 1 x 224",
        lightly=lightly.__version__,
        limits=limits,
        published="stable-pretraining, ViT-S/16, 2 x 224, batch 256, one H200: 870.9 img/s",
    )


if __name__ == "__main__":
    main()
