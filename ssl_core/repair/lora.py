"""Rung 4: low-rank updates of a ViT's attention (LoRA, arXiv 2106.09685), merged afterwards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Config
from ..models import Encoder
from ._common import TRAIN, Answer, Candidate, Context, Skip, untrainable
from .lp_ft import BATCH, tuned

JUDGED = True
TARGETS = ("qkv", "proj")  # of timm's attention


class Adapter(nn.Module):
    """A frozen linear layer plus ``up @ down`` of low rank; it starts as the layer itself."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.layer(x) + F.linear(F.linear(x, self.down), self.up)
        return out

    def merged(self) -> nn.Linear:
        """The layer with the update in its weights."""
        with torch.no_grad():
            self.layer.weight += self.up @ self.down
        return self.layer.requires_grad_(True)


def insert(encoder: Encoder, rank: int) -> list[str]:
    """Freeze the encoder and put adapters around its attention; returns their names."""
    encoder.requires_grad_(False)
    found = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-2:] in [["attn", t] for t in TARGETS]
    ]
    for name in found:
        layer = encoder.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        encoder.set_submodule(name, Adapter(layer, min(rank, *layer.weight.shape)))
    return found


def merge(encoder: Encoder, names: list[str]) -> None:
    """Put plain layers back: the same state dict as before, other values."""
    for name in names:
        adapter = encoder.get_submodule(name)
        assert isinstance(adapter, Adapter)
        encoder.set_submodule(name, adapter.merged())
    encoder.requires_grad_(True)


def cost(ctx: Context, cfg: Config) -> float:
    """All images once for the head, and the training steps."""
    return float(len(ctx.pool) + TRAIN * BATCH * cfg.repair.steps)


def propose(ctx: Context, cfg: Config) -> Answer:
    """Adapters and head are trained, then merged: the export is a plain timm state dict."""
    if not ctx.champion.encoder.is_vit:
        return Skip(f"{ctx.champion.encoder.name} has no attention to adapt (LoRA needs a ViT).")
    if lacking := untrainable(ctx, cfg):
        return lacking
    torch.manual_seed(cfg.seed)
    encoder = copy.deepcopy(ctx.champion.encoder)
    names = insert(encoder, cfg.repair.rank)
    count = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    found = tuned(ctx, cfg, encoder)
    merge(encoder, names)
    notes = {**found.notes, "rank": cfg.repair.rank, "trained_parameters": count}
    return Candidate(found.head, encoder, found.labels, notes)
