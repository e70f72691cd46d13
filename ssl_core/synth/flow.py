"""A rectified flow from noise to images, conditioned on the class, trained on the set itself.

Conditional flow matching along straight lines (arXiv 2210.02747, 2209.03003): with noise x0 and
an image x1, the point at time t is (1 - t) x0 + t x1 and its velocity x1 - x0. The network learns
the mean velocity at each point and time; following it from t = 0 to 1 turns noise into images.
Classifier-free guidance (arXiv 2207.12598) on velocities: v = none + g (class - none). Images
without a label train the velocity without class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..artifacts import atomic_file, sha256_json
from ..config import Section
from ..errors import HeadwaterError
from ..progress import Reporter
from ..types import Labels
from ._pool import Made, Pool, Wanted
from ._unet import UNet

VelocityField = Callable[[Tensor, Tensor], Tensor]  # points (B, ...), times (B,) -> velocities
AT_ONCE = 256  # images that are drawn together


class Options(Section):
    """Of the model, its training and its sampler."""

    side: int = Field(default=32, ge=16, le=64, multiple_of=16)
    width: int = Field(default=64, ge=16, multiple_of=16)
    patch: int = Field(default=2, ge=1, le=4)
    steps: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    no_class: float = Field(default=0.1, ge=0, lt=1)  # share of labels that are hidden
    # Images are drawn by their class's size to this power: 1 as they come, 0 all classes alike.
    power: float = Field(default=0.5, ge=0, le=1)
    flip: bool = False  # left and right are the same
    guidance: float = Field(default=2.0, ge=0)  # 1: none
    solver_steps: int = Field(default=16, ge=1)  # of Heun's method, two velocities each


# ---- the flow ----------------------------------------------------------------------------------


def _as(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) that multiply (B, ...)."""
    return t.reshape(-1, *[1] * (x.dim() - 1))


def point(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Where the line from x0 to x1 (B, ...) is at times (B,)."""
    return (1 - _as(t, x0)) * x0 + _as(t, x0) * x1


def target(x0: Tensor, x1: Tensor) -> Tensor:
    """Its velocity, the same at all times."""
    return x1 - x0


def loss(field: VelocityField, x1: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity at random times, for images x1 (B, ...): ()."""
    x0 = torch.randn(x1.shape, generator=generator).to(x1.device)
    # Logit-normal times (arXiv 2403.03206): the middle of the way is the hard part.
    t = torch.sigmoid(torch.randn(len(x1), generator=generator)).to(x1.device)
    return torch.nn.functional.mse_loss(field(point(x0, x1, t), t), target(x0, x1))


@torch.no_grad()
def integrate(field: VelocityField, x: Tensor, steps: int) -> Tensor:
    """Follow a velocity field from time 0 to 1 by Heun's method: (B, ...) -> (B, ...)."""
    for i in range(steps):
        now = torch.full((len(x),), i / steps, device=x.device)
        then = torch.full((len(x),), (i + 1) / steps, device=x.device)
        v = field(x, now)
        ahead = field(x + v / steps, then)
        x = x + (v + ahead) / (2 * steps)
    return x


def guided(model: nn.Module, labels: Tensor, none: int, strength: float) -> VelocityField:
    """The velocity of some classes (B,), pushed away from that of no class."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        if strength == 1:
            plain: Tensor = model(x, t, labels)
            return plain
        both = torch.cat([labels, torch.full_like(labels, none)])
        v, free = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        out: Tensor = free + strength * (v - free)
        return out

    return field


# ---- training ----------------------------------------------------------------------------------


def weights(labels: Labels, power: float) -> Tensor:
    """Chance of each image (N,): its class's size to ``power``, shared within the class.

    Images without a label are one class.
    """
    _, code, count = np.unique(labels, return_inverse=True, return_counts=True)
    chance = count.astype(np.float64) ** (power - 1)
    return torch.from_numpy(chance[code] / chance[code].sum())


def _follow(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # the first weights are soon forgotten
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def train(pool: Pool, options: Options, seed: int, report: Reporter) -> UNet:
    """The running average of a U-Net trained on the pool.

    Raises:
        HeadwaterError: training diverged.
    """
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    none = len(pool.classes)
    model = UNet(none, options.width, options.patch).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    images, chance = small(pool, options.side), weights(pool.labels, options.power)
    labels = torch.from_numpy(np.where(pool.labels < 0, none, pool.labels))
    with report.bar(options.steps, "steps") as advance:
        for step in range(options.steps):
            rows = torch.multinomial(chance, options.batch_size, True, generator=generator)
            hidden = torch.rand(len(rows), generator=generator) < options.no_class
            names = labels[rows].masked_fill(hidden, none).to(device)
            x1 = _views(images[rows], options.flip, generator).to(device)
            value = loss(lambda x, t, n=names: model(x, t, n), x1, generator)  # type: ignore[misc]
            if not torch.isfinite(value):
                where = f"step {step} of generator flow"
                raise HeadwaterError(where, "the loss is not finite", "lower its lr")
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = options.lr * min(1.0, (step + 1) / 100)
            optimiser.step()
            _follow(average, model, options.ema, step)
            advance(loss=float(value.detach()))
    return average.eval()


def small(pool: Pool, side: int) -> Tensor:
    """All images at the model's size, in [-1, 1]: (N, 3, side, side)."""
    parts = []
    for first in range(0, len(pool.pixels), 1024):
        chunk = torch.from_numpy(pool.pixels[first : first + 1024]).permute(0, 3, 1, 2)
        scaled = nn.functional.interpolate(  # (B, 3, S, S) -> (B, 3, side, side)
            chunk.float(), (side, side), mode="bicubic", antialias=True
        )
        parts.append((scaled / 127.5 - 1).clamp(-1, 1))
    return torch.cat(parts)


def _views(x: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    if not flip:
        return x
    turned = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(turned[:, None, None, None], x.flip(3), x)


def trained(pool: Pool, options: Options, seed: int, work: Path, report: Reporter) -> UNet:
    """The model, from an earlier call on the same images where there is one."""
    from safetensors.torch import load_file, save_file

    model_options = options.model_dump(exclude={"guidance", "solver_steps"})
    content = [sha256_json(model_options), seed, list(pool.classes)]
    digest = sha256_json([*content, *(_digest(a) for a in (pool.pixels, pool.labels))])
    file = work / f"flow-{digest[:12]}.safetensors"
    model = UNet(len(pool.classes), options.width, options.patch)
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    model = train(pool, options, seed, report)
    with atomic_file(file) as temp:
        save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, temp)
    return model


def _digest(values: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


# ---- images ------------------------------------------------------------------------------------


def draw(model: UNet, labels: Tensor, options: Options, generator: torch.Generator) -> Tensor:
    """Images of some classes (B,): uint8 (B, side, side, 3)."""
    device = next(model.parameters()).device
    noise = torch.randn((len(labels), 3, options.side, options.side), generator=generator)
    none = model.label.num_embeddings - 1
    field = guided(model, labels.to(device), none, options.guidance)
    x = integrate(field, noise.to(device), options.solver_steps).cpu()
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1)  # (B, 3, S, S) -> (B, S, S, 3)


def generate(
    pool: Pool, wanted: Wanted, options: Options, seed: int, work: Path, report: Reporter
) -> Iterator[Made]:
    """Train on the pool, then draw ``wanted[label]`` images of each class.

    Raises:
        HeadwaterError: training diverged.
    """
    model = trained(pool, options, seed, work, report)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.tensor([label for label, count in wanted.items() for _ in range(count)])
    for chunk in labels.split(AT_ONCE) if len(labels) else ():
        for label, pixels in zip(
            chunk.tolist(), draw(model, chunk, options, generator).numpy(), strict=True
        ):
            yield Made(pixels, label)
