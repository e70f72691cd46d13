"""Common corruptions at five severities, made here: no downloads, any size, any channels.

Kinds after Hendrycks & Dietterich (arXiv 1903.12261), without frost and snow, which need
photographs, and without glass blur. Strengths are our own where theirs are tied to 224 px or do not
rise steadily: lengths are shares of the side. So results compare encoders here, and nothing else:
this is not ImageNet-C.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import HeadwaterError

SEVERITIES = (1, 2, 3, 4, 5)
LUMA = (0.299, 0.587, 0.114)
Draw = torch.Generator
Corruption = Callable[[Tensor, float, Draw], Tensor]  # [0, 1] (B, C, H, W), strength -> the same


# ---- noise -------------------------------------------------------------------------------------


def gaussian_noise(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Noise of standard deviation ``strength``."""
    return x + strength * torch.randn(x.shape, generator=draw)


def shot_noise(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Poisson counts of ``1 / strength`` photons at white."""
    return torch.poisson(x.clamp(0, 1) / strength, generator=draw) * strength


def impulse_noise(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """A share of values becomes black or white, by turns."""
    chance = torch.rand(x.shape, generator=draw)
    return x.masked_fill(chance < strength / 2, 0).masked_fill(chance > 1 - strength / 2, 1)


# ---- blur --------------------------------------------------------------------------------------


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel through one kernel (k, k), k odd; edges are repeated."""
    half, c = len(kernel) // 2, x.shape[1]
    padded = F.pad(x, (half,) * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(c, 1, *kernel.shape), groups=c)


def defocus_blur(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """A disc whose radius, from half a pixel on, is a share of the side; its edge is smooth."""
    radius = 0.5 + strength * x.shape[-1]
    half = math.ceil(radius)
    steps = torch.arange(-half, half + 1)
    far = (steps[:, None] ** 2 + steps[None, :] ** 2).sqrt()
    kernel = (radius + 0.5 - far).clamp(0, 1)
    return filtered(x, kernel / kernel.sum())


def motion_blur(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """A line of a share of the side, in one direction for the whole batch."""
    length = strength * x.shape[-1]
    angle = math.pi * float(torch.rand((), generator=draw))
    half = math.ceil(length / 2)
    kernel = torch.zeros(2 * half + 1, 2 * half + 1)
    for place in torch.linspace(-length / 2, length / 2, 8 * half + 1).tolist():
        y, x0 = half + place * math.sin(angle), half + place * math.cos(angle)
        top, left = min(int(y), 2 * half - 1), min(int(x0), 2 * half - 1)
        dy, dx = y - top, x0 - left
        corner = torch.tensor([[(1 - dy) * (1 - dx), (1 - dy) * dx], [dy * (1 - dx), dy * dx]])
        kernel[top : top + 2, left : left + 2] += corner
    return filtered(x, kernel / kernel.sum())


def zoom_blur(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """The mean of views from 1 to ``1 + strength`` times as near."""
    steps = 9
    return sum((_near(x, 1 + strength * i / (steps - 1)) for i in range(steps)), x * 0) / steps


def _near(x: Tensor, factor: float) -> Tensor:
    scale = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]])
    grid = F.affine_grid(scale.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


# ---- weather and light -------------------------------------------------------------------------


def plasma(count: int, side: int, draw: Draw, rough: float = 0.5) -> Tensor:
    """Clouds (B, side, side) in [0, 1]: octaves of noise, each finer one weaker by ``rough``."""
    total, weight = torch.zeros(count, 1, side, side), 1.0
    cells = 2
    while cells <= side:
        noise = torch.rand(count, 1, cells, cells, generator=draw)
        total += weight * F.interpolate(noise, (side, side), mode="bicubic", align_corners=True)
        weight, cells = weight * rough, cells * 2
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return ((total - low) / (high - low).clamp_min(1e-6))[:, 0]


def fog(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Pale clouds in front: a share of the light is theirs, and contrast goes."""
    clouds = 0.4 + 0.6 * plasma(len(x), x.shape[-1], draw).unsqueeze(1)
    return (x + strength * clouds) / (1 + strength)


def brightness(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Light added to every channel."""
    return x + strength


def contrast(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Each channel drawn towards its own mean: ``strength`` of the difference goes."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + (1 - strength) * (x - mean)


def saturate(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Distance from grey times ``1 + strength``. Images of other than three channels stay."""
    if x.shape[1] != 3:
        return x
    grey = (x * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return grey + (1 + strength) * (x - grey)


# ---- geometry and storage ----------------------------------------------------------------------


def elastic(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Smooth shifts of ``strength`` of the side (root mean square), as through moving water."""
    b, _, h, w = x.shape
    rough = torch.randn(b, 2, 7, 7, generator=draw)
    shift = F.interpolate(rough, (h, w), mode="bicubic", align_corners=True)
    shift = shift / shift.square().mean((1, 2, 3), keepdim=True).sqrt() * 2 * strength
    still = torch.eye(2, 3).expand(b, 2, 3)
    grid = F.affine_grid(still, [b, 1, h, w], align_corners=False) + shift.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def pixelate(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Averaged to a side less by ``strength``, and enlarged without smoothing."""
    small = max(2, round(x.shape[-1] * (1 - strength)))
    coarse = F.interpolate(x, (small, small), mode="area")
    return F.interpolate(coarse, x.shape[-2:], mode="nearest-exact")


def jpeg(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Stored as JPEG of quality ``strength``; other than three channels one by one, as grey."""
    pixels = _bytes(x)
    planes = pixels if x.shape[1] == 3 else pixels.flatten(0, 1).unsqueeze(1)
    stored = [_stored(image, int(strength)) for image in planes.permute(0, 2, 3, 1).numpy()]
    back = torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    return back.reshape(x.shape).float() / 255


def _stored(image: np.ndarray, quality: int) -> np.ndarray:  # type: ignore[type-arg]
    out = io.BytesIO()
    plain = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(np.ascontiguousarray(plain)).save(out, "JPEG", quality=quality)
    with Image.open(out) as again:
        return np.asarray(again).reshape(image.shape)


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (1 / 60, 1 / 25, 1 / 12, 1 / 5, 1 / 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (defocus_blur, (0.01, 0.018, 0.027, 0.036, 0.045)),
    "motion_blur": (motion_blur, (0.045, 0.067, 0.09, 0.12, 0.16)),
    "zoom_blur": (zoom_blur, (0.11, 0.16, 0.21, 0.26, 0.33)),
    "fog": (fog, (0.4, 0.7, 1.1, 1.7, 2.5)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.6, 0.7, 0.8, 0.9, 0.95)),
    "saturate": (saturate, (0.5, 1.0, 1.8, 3.0, 5.0)),
    "elastic": (elastic, (0.01, 0.016, 0.023, 0.032, 0.045)),
    "pixelate": (pixelate, (0.5, 0.62, 0.72, 0.78, 0.84)),
    "jpeg": (jpeg, (25, 18, 13, 9, 6)),
}


def kinds(channels: int) -> list[str]:
    """The corruptions that change images of so many channels: saturation is of colours."""
    return [name for name in CORRUPTIONS if channels == 3 or name != "saturate"]


def _bytes(x: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded and cut off."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def apply(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """uint8 (B, C, S, S) -> the same shape, corrupted. Severity 0 changes nothing.

    Choices depend on the seed and the name alone: a higher severity is more of the same.

    Raises:
        HeadwaterError: unknown name, or a severity other than 0 to 5.
    """
    if name not in CORRUPTIONS:
        rule = f"is not one of {', '.join(CORRUPTIONS)}"
        raise HeadwaterError(f"corruption '{name}'", rule, "choose one of these")
    if severity not in (0, *SEVERITIES):
        raise HeadwaterError(f"severity {severity}", "is not one of 0 to 5", "choose one of these")
    if severity == 0:
        return images.clone()
    corrupt, strengths = CORRUPTIONS[name]
    draw = torch.Generator().manual_seed(seed * 2**20 + zlib.crc32(name.encode()) % 2**20)
    x = images.cpu().float() / 255
    return _bytes(corrupt(x, strengths[severity - 1], draw))
