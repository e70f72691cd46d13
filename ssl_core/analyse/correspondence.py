"""Do patches find their own place again: in another view of the image, and on another object?

``views``: two random warps of one image; PCK, the share of patches whose nearest patch (cosine) in
the other view lies within a tenth, or a fifth, of the side from where the warp put them. Only
patches on the object are asked where there are masks. Beside it: chance, and the guess that
nothing moved. ``same_class``: patches of one object matched with another image of its class;
``on_object`` is the share that lands on the object, its chance the object's share of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Analyse
from . import _masks, _pictures, _tokens
from ._subject import Finding, Row, Rows, Subject

TURN, SCALE, SHIFT = 20.0, (0.8, 1.25), 0.25  # degrees; times; of half the side
LIGHT = (0.7, 1.3)
NEAR = (0.1, 0.2)  # of the side
EDGE = 1e-9  # a place just at that distance counts
CHUNK = 32


def warps(count: int, draw: torch.Generator) -> Tensor:
    """Maps from a view's coordinates to the image's, both in [-1, 1]: (B, 3, 3) float64."""
    u = torch.rand(count, 4, generator=draw, dtype=torch.float64)
    angle = (2 * u[:, 0] - 1) * math.radians(TURN)
    scale = torch.exp(math.log(SCALE[0]) + u[:, 1] * math.log(SCALE[1] / SCALE[0]))
    out = torch.zeros(count, 3, 3, dtype=torch.float64)
    out[:, 0, 0], out[:, 0, 1] = scale * angle.cos(), -scale * angle.sin()
    out[:, 1, 0], out[:, 1, 1] = scale * angle.sin(), scale * angle.cos()
    out[:, :2, 2], out[:, 2, 2] = (2 * u[:, 2:] - 1) * SHIFT, 1
    return out


def warped(images: Tensor, warp: Tensor, mode: str = "bilinear") -> Tensor:
    """Views (B, C, S, S) float32 of images; what lies outside repeats the edge."""
    grid = F.affine_grid(warp[:, :2].float(), list(images.shape), align_corners=False)
    x = images.float()
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def centres(grid: tuple[int, int]) -> Tensor:
    """Where the cells of a map lie: (L, 2) of x and y in [-1, 1]."""
    y, x = ((torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1 for n in grid)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).flatten(0, 1)


def moved(points: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Points (L, 2) of the first view: where the second has them (B, L, 2), and whether it has."""
    ones = torch.cat([points, torch.ones(len(points), 1, dtype=points.dtype)], 1)
    image = ones @ first.mT  # (L, 3) @ (B, 3, 3) -> (B, L, 3)
    there = (image @ torch.linalg.inv(second).mT)[..., :2]
    inside = (image[..., :2].abs().amax(-1) <= 1) & (there.abs().amax(-1) <= 1)
    return there, inside


def nearest(first: Tensor, second: Tensor) -> Tensor:
    """For each cell of the first maps (B, h, w, D) the most similar of the second: (B, L)."""
    a, b = (F.normalize(x.flatten(1, 2), dim=-1) for x in (first, second))
    parts = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
    return torch.cat([(p @ q.mT).argmax(-1) for p, q in parts])


def _mean(hits: Tensor, asked: Tensor) -> Tensor:
    """Share of hits among the cells asked, by image (B,); NaN where none is."""
    return (hits & asked).sum(1) / asked.sum(1)


@dataclass(frozen=True)
class Views:
    """Two views of each image, uint8 (B, C, S, S), and how they came about."""

    images: tuple[Tensor, Tensor]
    warps: tuple[Tensor, Tensor]


def views(subject: Subject, chosen: Rows) -> Views:
    """Two warped views of every image; the second one in another light."""
    draw = torch.Generator().manual_seed(subject.seed)
    images = subject.source.take(chosen).cpu()
    both = warps(len(chosen), draw), warps(len(chosen), draw)
    first, second = (warped(images, warp) for warp in both)
    low, high = LIGHT
    second = second * (low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=draw))
    pixels = tuple(x.round().clamp(0, 255).to(torch.uint8) for x in (first, second))
    return Views((pixels[0], pixels[1]), both)


def pck(first: Tensor, second: Tensor, made: Views, asked: Tensor | None) -> dict[str, Tensor]:
    """By metric, values (B,) for maps (B, h, w, D) of both views; ``asked`` (B, L) bool or all."""
    points = centres((first.shape[1], first.shape[2]))
    there, inside = moved(points, *made.warps)
    asked = inside if asked is None else inside & asked
    gap = (there[:, :, None] - points[None, None]).norm(dim=-1) / 2  # (B, L, L), of the side
    found = gap.gather(2, nearest(first, second).unsqueeze(2)).squeeze(2)
    still = gap.diagonal(dim1=1, dim2=2)
    out = {}
    for near in NEAR:
        reach = near + EDGE
        out[f"pck_{near}"] = _mean(found <= reach, asked)
        out[f"pck_{near}_unmoved"] = _mean(still <= reach, asked)
        chance = (gap <= reach).double().mean(-1)
        out[f"pck_{near}_chance"] = (chance * asked).sum(1) / asked.sum(1)
    return out


def _on_object(subject: Subject, chosen: Rows, grid: tuple[int, int], warp: Tensor) -> Tensor:
    """Cells of the first view that lie on an object: (B, L) bool."""
    masks = torch.from_numpy(_masks.objects(_masks.true(subject, chosen))).unsqueeze(1)
    seen = warped(masks, warp, "nearest")[:, 0] > 0.5
    return torch.from_numpy(_masks.shares(seen.numpy(), grid) >= 0.5).flatten(1)


def _maps(subject: Subject, images: Tensor) -> Tensor:
    parts = [
        _tokens.dense_of(subject, images[i : i + _tokens.BATCH])
        for i in range(0, len(images), _tokens.BATCH)
    ]
    return torch.cat(parts)


def between_views(subject: Subject, count: int) -> tuple[list[Row], dict[str, bytes]]:
    """Rows of slice ``views``, and the picture."""
    masked = _masks.rows(subject, count)
    chosen = masked if len(masked) else subject.draw(count)
    made = views(subject, chosen)
    first, second = (_maps(subject, images) for images in made.images)
    grid = (first.shape[1], first.shape[2])
    asked = _on_object(subject, chosen, grid, made.warps[0]) if len(masked) else None
    found = pck(first, second, made, asked)
    rows = [subject.average(name, v.numpy(), chosen, "views") for name, v in found.items()]
    return rows, _pictured(made, first, second)


def _pictured(made: Views, first: Tensor, second: Tensor) -> dict[str, bytes]:
    """First views in colours of place, and the second ones' patches where those land."""
    some = slice(_pictures.SAMPLES)
    h, w = first.shape[1:3]
    points = centres((h, w)).float()
    colours = torch.cat([(points + 1) / 2, 1 - (points[:, :1] + 1) / 2], 1) * 255  # (L, 3)
    match = nearest(second[some], first[some])  # which place of the first view each cell takes
    painted = colours[match].unflatten(1, (h, w)).byte().numpy()
    key = np.broadcast_to(colours.unflatten(0, (h, w)).byte().numpy(), painted.shape)
    pairs = [[_pictures.rgb(i) for i in images[some]] for images in made.images]
    large = [list(x.repeat(4, 1).repeat(4, 2)) for x in (key, painted)]
    return {"correspondence": _pictures.sheet([pairs[0], large[0], pairs[1], large[1]])}


def pairs(subject: Subject, chosen: Rows) -> tuple[Rows, Rows]:
    """Places in ``chosen`` of images and, for each, another one of its class and another group."""
    labels, groups = subject.rows.labels[chosen], subject.rows.groups[chosen]
    rng = np.random.default_rng(subject.seed)
    first, second = [], []
    for i, label in enumerate(labels):
        others = np.flatnonzero((labels == label) & (groups != groups[i]))
        if label >= 0 and len(others):
            first.append(i)
            second.append(int(rng.choice(others)))
    return np.array(first, np.int64), np.array(second, np.int64)


def across_images(subject: Subject, count: int) -> list[Row]:
    """Rows of slice ``same_class``; none without masks or without pairs."""
    chosen = _masks.rows(subject, count)
    first, second = pairs(subject, chosen)
    if not len(first):
        return []
    maps = _tokens.maps(subject, chosen)[1]
    grid = (maps.shape[1], maps.shape[2])
    shares = _masks.shares(_masks.objects(_masks.true(subject, chosen)), grid)
    objects = torch.from_numpy(shares >= 0.5).flatten(1)
    hits = objects[second].gather(1, nearest(maps[first], maps[second]))
    asked = objects[first] & objects[second].any(1, keepdim=True)
    chance = objects[second].double().mean(1).where(asked.any(1), torch.nan)
    where = chosen[first]
    found = _mean(hits, asked).numpy()
    return [
        subject.average("on_object", found, where, "same_class"),
        subject.average("on_object_chance", chance.numpy(), where, "same_class"),
    ]


def run(subject: Subject, cfg: Analyse) -> Finding:
    """PCK between two views, and how often patches of an object land on another of its class."""
    rows, pictures = between_views(subject, max(cfg.images // 2, 1))
    return Finding(rows + across_images(subject, cfg.images), pictures)
