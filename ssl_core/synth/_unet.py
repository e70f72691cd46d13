"""A small U-Net that predicts a velocity from a noisy image, a time and a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8
FREQUENCIES = 32


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of times in [0, 1]: (B,) -> (B, 2 * FREQUENCIES)."""
    rates = torch.exp(torch.linspace(0, math.log(1000.0), FREQUENCIES, device=t.device))
    angles = t[:, None] * rates  # (B, 1) * (F,) -> (B, F)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _silence(*layers: nn.Conv2d | nn.Linear) -> None:
    """Let layers give zero until they have learned something."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class Block(nn.Module):
    """Residual: two 3x3 convolutions, scaled and shifted by time and class in between."""

    def __init__(self, inside: int, outside: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, inside), nn.GroupNorm(GROUPS, outside)])
        self.modulate = nn.Linear(condition, 2 * outside)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        _silence(self.second, self.modulate)  # each block starts as its skip

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H, W)."""
        h = self.first(F.silu(self.norms[0](x)))
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, dim=1)
        h = self.second(F.silu(self.norms[1](h) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Every place looks at every place; only at the coarsest scale."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(GROUPS, width), heads
        self.inside, self.outside = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        _silence(self.outside)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        b, c, h, w = x.shape
        parts = self.inside(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = parts.transpose(-1, -2).unbind(1)  # (B, heads, HW, C / heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(-1, -2).reshape(b, c, h, w)  # (B, heads, HW, d) -> (B, C, H, W)
        out: Tensor = x + self.outside(mixed)
        return out


class UNet(nn.Module):
    """Three scales, ``width`` channels at the first and twice as many below.

    ``patch`` squared pixels are one place of the first scale. Class ``classes`` means none.
    """

    def __init__(self, classes: int, width: int, patch: int) -> None:
        super().__init__()
        wide, e, self.patch = 2 * width, 4 * width, patch
        self.label = nn.Embedding(classes + 1, e)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, e), nn.SiLU(), nn.Linear(e, e))
        self.stem = nn.Conv2d(3 * patch**2, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, e), Block(width, wide, e)])
        self.low = nn.ModuleList([Block(wide, wide, e), Block(wide, wide, e)])
        self.look = Attention(wide)
        self.up = nn.ModuleList([Block(2 * wide, wide, e), Block(wide + width, width, e)])
        self.norm = nn.GroupNorm(GROUPS, width)
        self.out = nn.Conv2d(width, 3 * patch**2, 3, padding=1)
        _silence(self.out)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """(B, 3, S, S), times (B,), classes (B,) -> velocity (B, 3, S, S)."""
        c = F.silu(self.time(time_features(t)) + self.label(label))
        h = self.stem(F.pixel_unshuffle(x, self.patch))  # (B, 3, S, S) -> (B, W, S/p, S/p)
        fine = self.down[0](h, c)
        middle = self.down[1](F.avg_pool2d(fine, 2), c)
        low = self.low[0](F.avg_pool2d(middle, 2), c)
        low = self.low[1](self.look(low), c)
        h = self.up[0](torch.cat([F.interpolate(low, scale_factor=2.0), middle], 1), c)
        h = self.up[1](torch.cat([F.interpolate(h, scale_factor=2.0), fine], 1), c)
        out: Tensor = F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch)
        return out
