"""The third witness: do two small pictures agree once the second is laid over the first?

A copy may have lost a few per cent at its edges, so the second is scaled and moved along both axes
(four parameters, Gauss-Newton on grey values). Its brightness may have changed, even clipped, so
a cubic curve of one picture's values must explain the other's. What counts is the window that is
explained worst: the noise of re-encoding is spread, the eyes of another face are in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import Array

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
SIDE = 24  # pixels: three times the pHash's eight frequencies; 32 was no better and slower
WINDOW = 5  # pixels
BATCH = 1024  # pairs laid over each other at a time
COMPARED = 128  # pairs or pictures multiplied at a time: they stay in the cache
ROUNDS = 6
REACH = 0.2  # of half a side: how far the overlay may move, and its scale change
ROUNDING = 2e-6  # of a sum of products in float32, relative to it
# A pair whose correlation is no better after so many rounds is given up, and gets 0. Of true copies
# (benchmarks/duplicates.py) one in a hundred begins below 0.7.
HOPELESS = {0: 0.6, 1: 0.7, 3: 0.8, ROUNDS: 0.85}


def thumbnail(pixels: Pixels) -> Pixels:
    """Stretched to a small square, as the pHash does: (H, W, 3) -> (3, SIDE, SIDE)."""
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(small).transpose(2, 0, 1)


def mirrored(pictures: Pixels, turned: NDArray[np.bool_]) -> Pixels:
    """The pictures (P, 3, S, S), those of a mask (P,) from left to right; changes ``pictures``."""
    pictures[turned] = pictures[turned][..., ::-1]
    return pictures


def hopeful(
    pictures: Pixels, first: NDArray[np.int64], second: NDArray[np.int64], turned: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which pairs of pictures (N, 3, S, S) :func:`agreement` would not give up at once: (P,).

    Most doubtful pairs look nothing like each other, and this asks for one product a pair: the
    moments of a picture are the same in all its pairs.
    """
    flat = pictures.reshape(len(pictures), -1)
    mean, norm = np.empty(len(flat), np.float32), np.empty(len(flat), np.float32)
    for start in range(0, len(flat), COMPARED):
        s = slice(start, start + COMPARED)
        x = flat[s].astype(np.float32)
        mean[s] = x.mean(1)
        x -= mean[s, None]
        norm[s] = np.sqrt(np.einsum("pk,pk->p", x, x))
    found = np.empty(len(first), dtype=bool)
    for start in range(0, len(first), COMPARED):
        s = slice(start, start + COMPARED)
        a, b = first[s], second[s]
        theirs = mirrored(pictures[b], turned[s]).reshape(len(b), -1)  # (B, 3, S, S) -> (B, 3*S*S)
        product = np.einsum("pk,pk->p", flat[a].astype(np.float32), theirs.astype(np.float32))
        covariance = product * (1 + ROUNDING) - flat.shape[1] * mean[a] * mean[b]
        found[s] = covariance > HOPELESS[0] * norm[a] * norm[b]
    return found


def agreement(first: Pixels, second: Pixels) -> Array:
    """How well the worst window is explained: (P, 3, S, S) twice -> (P,) in [0, 1].

    1 minus the mean squared residual there, over the variance of the whole picture. Pictures
    without any contrast get 0.
    """
    import torch

    parts = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(first), BATCH):
        block = slice(start, start + BATCH)
        a, b = (torch.from_numpy(x[block].copy()).float() / 255 for x in (first, second))
        parts.append(_agreement(a, b).numpy())
    return np.concatenate(parts)


def _agreement(a: Tensor, b: Tensor) -> Tensor:
    """(P, 3, S, S) twice -> (P,)."""
    import torch

    scores = torch.zeros(len(a))
    alive, lay = _align(a, b)
    if len(alive):
        over, mask = _warp(b[alive], lay)
        # Where one is clipped, only the other can explain it: the better direction counts.
        both = (_explained(a[alive], over, mask), _explained(over, a[alive], mask))
        scores[alive] = torch.maximum(*both)
    return scores


def _align(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs with hope and their best overlay: (P, 3, S, S) twice -> (Q,), (Q, 4)."""
    import torch

    alive = torch.arange(len(a))
    lay = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(a), 1)  # x scale, x shift, y scale, y shift
    best, found = torch.zeros(len(a)), lay.clone()
    for turn in range(ROUNDS + 1):
        score = _correlation(a[alive], b[alive], lay) if turn else _as_they_lie(a, b)
        better = score > best[alive]
        best[alive[better]], found[alive[better]] = score[better], lay[better]
        go = best[alive] > HOPELESS.get(turn, 0.0)
        alive, lay = alive[go], lay[go]
        if turn == ROUNDS or not len(alive):
            break
        lay = _step(a[alive].mean(1, keepdim=True), b[alive].mean(1, keepdim=True), lay)
    return alive, found[alive]


def _explained(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Of a by a cubic in b, in the worst window: (P, 3, S, S) twice, (P, 1, S, S) -> (P,)."""
    import torch
    from torch.nn import functional

    inside = mask.expand_as(a).flatten(1)  # (P, 3*S*S)
    wanted, given = a.flatten(1) * inside, b.flatten(1)
    powers = torch.stack([given**d for d in range(4)], dim=-1) * inside[..., None]
    normal = powers.mT @ powers + 1e-4 * torch.eye(4)
    fit = torch.linalg.solve(normal, powers.mT @ wanted[..., None])  # (P, 4, 1)
    rest = (wanted - (powers @ fit).squeeze(2)).view_as(a).square().mean(1, keepdim=True)
    worst = functional.avg_pool2d(rest, WINDOW, 1).flatten(1).amax(1)
    variance = _centred(a, mask).square().sum((1, 2, 3)) / inside.sum(1).clamp(min=1)
    return (1 - worst / variance.clamp(min=1e-6)).clamp(min=0)


def _warp(b: Tensor, lay: Tensor) -> tuple[Tensor, Tensor]:
    """b laid over, and where it has pixels: (P, C, S, S), (P, 4) -> (P, C, S, S), (P, 1, S, S)."""
    import torch
    from torch.nn import functional

    count, side = len(b), b.shape[-1]
    line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    x = (lay[:, :1] * line + lay[:, 1:2])[:, None, :].expand(count, side, side)
    y = (lay[:, 2:3] * line + lay[:, 3:])[:, :, None].expand(count, side, side)
    grid = torch.stack([x, y], dim=-1)  # (P, S, S, 2)
    over = functional.grid_sample(b, grid, padding_mode="border", align_corners=False)
    return over, ((x.abs() < 1) & (y.abs() < 1)).float().unsqueeze(1)


def _centred(x: Tensor, mask: Tensor) -> Tensor:
    """Minus its mean within the mask over all colours, 0 outside."""
    weight = mask.sum((1, 2, 3), keepdim=True) * x.shape[1]
    return (x - (x * mask).sum((1, 2, 3), keepdim=True) / weight.clamp(min=1)) * mask


def _as_they_lie(a: Tensor, b: Tensor) -> Tensor:
    """The correlation where nothing is moved; most pairs are given up here: -> (P,)."""
    a, b = (x.flatten(1) for x in (a, b))  # (P, 3, S, S) -> (P, 3*S*S)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    found: Tensor = (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1) + 1e-6).sqrt()
    return found


def _correlation(a: Tensor, b: Tensor, lay: Tensor) -> Tensor:
    over, mask = _warp(b, lay)
    a, over = _centred(a, mask), _centred(over, mask)
    powers = (a * a).sum((1, 2, 3)) * (over * over).sum((1, 2, 3))
    found: Tensor = (a * over).sum((1, 2, 3)) / (powers + 1e-6).sqrt()
    return found


def _step(a: Tensor, b: Tensor, lay: Tensor) -> Tensor:
    """One Gauss-Newton step of the overlay on grey (P, 1, S, S), with the best contrast."""
    import torch
    from torch.nn import functional

    side = a.shape[-1]
    over, mask = _warp(b, lay)
    a, w = _centred(a, mask), _centred(over, mask)
    gain = (a * w).sum((1, 2, 3)) / (w * w).sum((1, 2, 3)).clamp(min=1e-6)
    gain = gain.clamp(0.2, 5)[:, None, None, None]
    # Slopes per half a side, central differences, none at the border.
    dx = functional.pad((over[..., 2:] - over[..., :-2]) * side / 4, (1, 1))
    dy = functional.pad((over[..., 2:, :] - over[..., :-2, :]) * side / 4, (0, 0, 1, 1))
    line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    slopes = torch.stack([dx * line, dx, dy * line[:, None], dy], dim=-1)  # (P, 1, S, S, 4)
    slopes = (slopes * gain[..., None] * mask[..., None]).flatten(1, 3)  # (P, S*S, 4)
    slopes = slopes - slopes.mean(1, keepdim=True)
    residual = (a - gain * w).flatten(1).unsqueeze(2)  # (P, S*S, 1)
    normal = slopes.mT @ slopes + 1e-3 * torch.eye(4)
    move = torch.linalg.solve(normal, slopes.mT @ residual).squeeze(2)  # (P, 4)
    still = torch.tensor([1.0, 0.0, 1.0, 0.0])
    found: Tensor = still + (lay + move.clamp(-REACH / 2, REACH / 2) - still).clamp(-REACH, REACH)
    return found
