"""How far, how widely and how alike the heads of a ViT look (arXiv 2305.00729).

Contrastive learning tends to far attention that is the same for every query in late layers (NMI
near 0), masked image modelling to near attention that depends on the query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import Analyse
from . import _pictures, _tokens
from ._subject import Finding, Row, Rows, Subject

TINY = 1e-32
SMOOTH = 1e-8  # as the authors' code, before the mutual information

Grid = tuple[int, int]


def patches(weights: Tensor, prefix: int) -> Tensor:
    """Attention between patches alone, rows summing to one: (..., N, N) -> (..., L, L)."""
    kept = weights[..., prefix:, prefix:]
    found: Tensor = kept / (kept.sum(-1, keepdim=True) + TINY)
    return found


def gaps(grid: Grid, stride: int) -> Tensor:
    """Distance in pixels between the centres of any two patches, (L, L)."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([y, x], -1).flatten(0, 1).double() * stride  # (h, w, 2) -> (L, 2)
    return torch.cdist(places, places)


def distance(weights: Tensor, grid: Grid, stride: int) -> Tensor:
    """Mean distance in pixels between a query and what it attends to: (..., L, L) -> (...)."""
    return (weights * gaps(grid, stride).to(weights)).sum(-1).mean(-1)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy of rows as a share of the largest possible: (..., L, L) -> (...), 0 to 1."""
    found = torch.special.entr(weights).sum(-1).mean(-1)
    scaled: Tensor = found / math.log(max(weights.shape[-1], 2))
    return scaled


def information(weights: Tensor) -> Tensor:
    """Normalised mutual information of query and key, queries equally likely: -> (...), 0 to 1.

    0: every query attends to the same keys; 1: each to a key of its own.
    """
    size = weights.shape[-1]
    joint = weights + SMOOTH
    joint = joint / joint.sum(-1, keepdim=True)
    keys = joint.mean(-2, keepdim=True)  # (..., 1, L)
    shared = (joint * (joint / keys).log()).sum(-1).mean(-1)
    spread = torch.special.entr(keys).sum((-1, -2))
    found: Tensor = shared / (math.log(max(size, 2)) * spread).clamp_min(TINY).sqrt()
    return found


def diversity(weights: Tensor) -> Tensor:
    """How differently heads look: (B, H, L, L) -> (B,), 0 alike, 1 at disjoint places.

    The Jensen-Shannon divergence of the heads over log H, mean over queries; NaN for one head.
    """
    heads = weights.shape[1]
    if heads < 2:
        return weights.new_full((len(weights),), math.nan)
    whole = torch.special.entr(weights.mean(1)).sum(-1)  # (B, L)
    parts = torch.special.entr(weights).sum(-1).mean(1)
    found: Tensor = (whole - parts).mean(-1) / math.log(heads)
    return found


def measures(subject: Subject, rows: Rows) -> dict[str, Tensor]:
    """By name, values (layers, B, heads), or (layers, B) for what heads share."""
    encoder, side = subject.encoder, subject.source.side
    grid = (side // encoder.stride, side // encoder.stride)
    found: dict[str, list[Tensor]] = {}
    for _, seen in _tokens.stream(subject, rows, _tokens.attentions):
        own = [patches(weights.float(), encoder.n_prefix) for weights in seen]
        parts = {
            "distance": torch.stack([distance(a, grid, encoder.stride) for a in own]),
            "nmi": torch.stack([information(a) for a in own]),
            "entropy": torch.stack([entropy(a) for a in own]),
            "head_diversity": torch.stack([diversity(a) for a in own]),
            "to_prefix": torch.stack(
                [a[:, :, encoder.n_prefix :, : encoder.n_prefix].sum(-1).mean(-1) for a in seen]
            ),
        }
        for name, part in parts.items():
            found.setdefault(name, []).append(part.cpu())
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


METRICS = {
    "distance": "attention_distance_px",
    "nmi": "attention_nmi",
    "entropy": "attention_entropy",
    "head_diversity": "attention_head_diversity",
    "to_prefix": "attention_to_prefix",
}


def _rows(subject: Subject, chosen: Rows, found: dict[str, Tensor]) -> list[Row]:
    """Layers with intervals over images; the distance of single heads too."""
    rows = []
    for name, metric in METRICS.items():
        for number, values in enumerate(found[name], 1):
            each = values.mean(-1) if values.ndim == 2 else values  # (B, H) -> (B,)
            rows.append(subject.average(metric, each.numpy(), chosen, f"layer:{number}"))
    for number, heads in enumerate(found["distance"], 1):
        for head, values in enumerate(heads.T, 1):
            where = f"layer:{number}/head:{head}"
            rows.append(subject.average(METRICS["distance"], values.numpy(), chosen, where))
    return rows


def _pictured(subject: Subject, chosen: Rows, found: dict[str, Tensor]) -> dict[str, bytes]:
    encoder, side = subject.encoder, subject.source.side
    by_head = found["distance"].mean(1).numpy()  # (layers, B, H) -> (layers, H)
    numbers = [str(i) for i in range(1, len(by_head) + 1)]
    heads = [str(i) for i in range(1, by_head.shape[1] + 1)]
    grid = (side // encoder.stride, side // encoder.stride)
    even = torch.full((grid[0] * grid[1],) * 2, 1 / (grid[0] * grid[1]))
    level = float(distance(even, grid, encoder.stride))
    title = f"Mean attention distance (px); even attention: {level:.1f}"
    flat = {k: v.flatten(1).nanmean(1).numpy() for k, v in found.items()}
    return {
        "attention_distance": _pictures.heat(by_head, title, ("layer", numbers), ("head", heads)),
        "attention_layers": _pictures.lines(
            {
                "distance (px)": {"distance": (numbers, flat["distance"])},
                "of their largest": {
                    name.replace("_", " "): (numbers, flat[name])
                    for name in ("nmi", "entropy", "head_diversity")
                },
            },
            ("layer", "layer"),
            {"distance (px)": level},
        ),
        "attention_maps": _maps(subject, chosen),
    }


def _maps(subject: Subject, chosen: Rows) -> bytes:
    """Images, and what the last layer attends to: the class token, or else the mean patch."""
    some = chosen[: _pictures.SAMPLES]
    images = _pictures.thumbnails(subject, some)
    prefix = subject.encoder.n_prefix
    side = subject.source.side // subject.encoder.stride
    drawn = []
    for _, seen in _tokens.stream(subject, some, _tokens.attentions):
        last = seen[-1].float()
        queries = last[:, :, :1] if _tokens.has_class_token(subject.encoder) else last
        shares = queries[..., prefix:].mean(2)  # (B, H, 1 or N, N) -> (B, H, L)
        drawn.append(shares.unflatten(-1, (side, side)).cpu())
    maps = torch.cat(drawn).numpy()  # (B, H, h, w)
    rows = [images, [_pictures.overlay(i, m.mean(0)) for i, m in zip(images, maps, strict=True)]]
    for head in range(min(maps.shape[1], 4)):
        rows.append([_pictures.overlay(i, m[head]) for i, m in zip(images, maps, strict=True)])
    return _pictures.sheet(rows)


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Distance, mutual information, entropy and diversity of attention, by layer."""
    if not _tokens.has_attention(subject.encoder):
        return Finding(missing=f"backbone '{subject.encoder.name}' {_tokens.NO_ATTENTION}")
    chosen = subject.draw(cfg.images)
    found = measures(subject, chosen)
    return Finding(_rows(subject, chosen, found), _pictured(subject, chosen, found))
