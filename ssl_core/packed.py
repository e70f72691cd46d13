"""Transformer blocks over several groups of token sequences in one pass, without padding.

All tokens lie in one (T, D) matrix: norms and linear layers see it whole, attention runs group
by group, since only sequences of one length can share a call. The last block computes only the
rows that are used afterwards: a loss on the class token needs no other output, and every other
block stays whole because attention reads all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Plan:
    """How a pack is laid out: ``sizes`` are (B, N) of each group, in its order.

    ``rows`` (W,) int64: the rows of the pack that the block returns; None: all. ``first``: these
    are the first token of every sequence, so that attention needs no other query.
    """

    sizes: tuple[tuple[int, int], ...]
    rows: Tensor | None = None
    first: bool = False


class PackedBlock(Block):
    """timm's block; with a ``plan`` its input is a pack (T, D) and its output (T or W, D)."""

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        plan: Plan | None = None,
    ) -> Tensor:
        """As timm's without a plan: (B, N, D) -> (B, N, D)."""
        if plan is None:
            return super().forward(x, attn_mask, is_causal)
        y = _attend(cast(Attention, self.attn), self.norm1(x), plan)
        if plan.rows is not None:
            x = x.index_select(0, plan.rows)  # (T, D) -> (W, D)
        x = x + _drop(self.drop_path1, self.ls1(y), plan)
        return x + _drop(self.drop_path2, self.ls2(self.mlp(self.norm2(x))), plan)


def _attend(attn: Attention, x: Tensor, plan: Plan) -> Tensor:
    """(T, D) -> (T or W, D)."""
    qkv = attn.qkv(x)  # (T, D) -> (T, 3*H*d)
    parts = qkv.split([b * n for b, n in plan.sizes]) if len(plan.sizes) > 1 else (qkv,)
    found = []
    for (b, n), part in zip(plan.sizes, parts, strict=True):
        q, k, v = part.view(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        if plan.first:
            q = q[:, :, :1]  # (B, H, N, d) -> (B, H, 1, d)
        drop = attn.attn_drop.p if attn.training else 0.0
        y = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=drop)
        found.append(y.transpose(1, 2).flatten(0, 1).flatten(1))  # (B, H, N, d) -> (B*N, H*d)
    out = torch.cat(found) if len(found) > 1 else found[0]
    if plan.rows is not None and not plan.first:
        out = out.index_select(0, plan.rows)
    out = attn.norm(out)
    if attn.gate is not None:
        gate = x if plan.rows is None else x.index_select(0, plan.rows)
        out = out * attn.gate(gate).sigmoid()
    return cast(Tensor, attn.proj_drop(attn.proj(out)))


def _drop(layer: nn.Module, x: Tensor, plan: Plan) -> Tensor:
    """Stochastic depth by sequence, as timm's on (B, N, D)."""
    if not isinstance(layer, DropPath) or not layer.training or not layer.drop_prob:
        return x
    keep = 1 - layer.drop_prob
    count = sum(b for b, _ in plan.sizes)
    alive = torch.empty(count, device=x.device, dtype=x.dtype).bernoulli_(keep)
    alive = alive / keep if layer.scale_by_keep else alive
    lengths = torch.tensor([n for b, n in plan.sizes for _ in range(b)], device=x.device)
    if plan.first:
        return x * alive.unsqueeze(1)
    alive = alive.repeat_interleave(lengths)  # (sequences,) -> (T,)
    return x * (alive if plan.rows is None else alive[plan.rows]).unsqueeze(1)


def reason(model: Any) -> str:
    """Why the blocks of a timm ViT cannot take a pack; empty if they can."""
    for block in model.blocks:
        if type(block) not in (Block, PackedBlock):
            return f"its blocks are of type {type(block).__name__}"
        if type(block.attn) is not Attention:
            return f"its attention is of type {type(block.attn).__name__}"
    return "" if isinstance(model.patch_drop, nn.Identity) else "it drops patches by itself"


def adopt(model: Any) -> None:
    """Let the blocks take packs. Parameters, names and what they compute stay the same."""
    for block in model.blocks:
        block.__class__ = PackedBlock


def run(blocks: Sequence[nn.Module], x: Tensor, plan: Plan, checkpoints: bool = False) -> Tensor:
    """A pack (T, D) through all blocks; the last one returns ``plan.rows`` only, if given.

    ``checkpoints`` keeps each block's input alone and computes the block again for the gradient.
    """
    whole = replace(plan, rows=None, first=False)
    for i, block in enumerate(blocks):
        mine = plan if i + 1 == len(blocks) else whole
        if checkpoints and torch.is_grad_enabled():
            x = checkpoint(block, x, plan=mine, use_reentrant=False)
        else:
            x = block(x, plan=mine)
    return x


def rows(sizes: Sequence[tuple[int, int]], wanted: Sequence[Tensor | None]) -> Tensor:
    """Rows of a pack: the first token of every sequence, then of each group those wanted.

    ``wanted``: (B, N) bool, on any device, or None.
    """
    firsts, others, start = [], [], 0
    for (b, n), mask in zip(sizes, wanted, strict=True):
        firsts.append(start + n * torch.arange(b))
        if mask is not None:
            others.append(start + mask.flatten().nonzero().squeeze(1))
        start += b * n
    return torch.cat([*firsts, *(o.cpu() for o in others)])
