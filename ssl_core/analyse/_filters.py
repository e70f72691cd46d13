"""Images without their shape, or with some of their frequencies only."""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(images: Tensor, tiles: int, seed: int) -> Tensor:
    """Each image's ``tiles`` x ``tiles`` squares in an order of its own: (B, C, S, S), any dtype.

    The side has to be a multiple of ``tiles``.
    """
    b, c, side = images.shape[:3]
    size = side // tiles
    cut = images.reshape(b, c, tiles, size, tiles, size).permute(0, 2, 4, 1, 3, 5)
    flat = cut.flatten(1, 2)  # (B, tiles, tiles, C, s, s) -> (B, tiles^2, C, s, s)
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(b, tiles * tiles, generator=draw).argsort(1)
    moved = flat[torch.arange(b)[:, None], order].unflatten(1, (tiles, tiles))
    found: Tensor = moved.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    return found


def _radius(side: int) -> Tensor:
    """Frequency of each coefficient of ``rfft2`` as a share of half the sampling rate."""
    down, across = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    found: Tensor = torch.hypot(2 * down[:, None], 2 * across[None, :])
    return found


def _through(x: Tensor, gain: Tensor) -> Tensor:
    found: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])
    return found


def _bytes(x: Tensor) -> Tensor:
    found: Tensor = x.round().clamp(0, 255).to(torch.uint8)
    return found


def low_passed(images: Tensor, cut: float) -> Tensor:
    """uint8 (B, C, S, S) after a Gaussian filter of width ``cut``, of half the sampling rate."""
    gain = torch.exp(-0.5 * (_radius(images.shape[-1]) / cut) ** 2)
    return _bytes(_through(images.float(), gain))


def high_passed(images: Tensor, cut: float) -> Tensor:
    """What :func:`low_passed` takes away, on the image's mean."""
    gain = 1 - torch.exp(-0.5 * (_radius(images.shape[-1]) / cut) ** 2)
    gain[0, 0] = 1
    return _bytes(_through(images.float(), gain))


def noisy(images: Tensor, band: tuple[float, float], strength: float, seed: int) -> Tensor:
    """Noise of one band of frequencies added, of standard deviation ``strength`` (of 255)."""
    radius = _radius(images.shape[-1])
    gain = ((radius >= band[0]) & (radius < band[1])).float()
    draw = torch.Generator().manual_seed(seed)
    noise = _through(torch.randn(images.shape, generator=draw), gain)
    noise = noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    return _bytes(images.float() + strength * 255 * noise)
