"""Heads that are thrown away after pretraining."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projector(
    width: int, hidden: int, out: int, layers: int = 2, last_norm: bool = True
) -> nn.Sequential:
    """MLP with batch norm and ReLU after every layer but the last: (B, width) -> (B, out).

    ``last_norm`` ends it with a batch norm without affine part (SimCLR, MoCo v3), else it ends
    with a linear layer that has a bias (predictors of BYOL and SimSiam).
    """
    sizes = [width, *[hidden] * (layers - 1)]
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    parts.append(nn.Linear(sizes[-1], out, bias=not last_norm))
    if last_norm:
        parts.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*parts)


class PrototypeHead(nn.Module):
    """DINO's head (arXiv 2104.14294): MLP, unit bottleneck, unit prototypes.

    (B, width) -> (B, K) cosines: the weight norm's gain is fixed to 1 (``norm_last_layer``), so
    the logits lie in [-1, 1].
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """``frozen`` gives the prototypes a zero gradient (early training)."""
        # Not a plain detach: DDP waits for a gradient of every parameter.
        own = self.prototypes
        weight = own.detach() + 0 * own if frozen else own
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(weight, dim=-1))


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (h*w, dim); first half of ``dim`` codes the column.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim {dim} must be a multiple of 4")
    rate = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    h, w = grid
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    parts = [p.reshape(-1, 1) * rate for p in (column, row)]  # 2 x (h*w, dim/4)
    return torch.cat([f(p) for p in parts for f in (torch.sin, torch.cos)], dim=1)


class MaskedDecoder(nn.Module):
    """MAE's light decoder (arXiv 2111.06377): kept tokens in, pixels of all patches out."""

    positions: Tensor

    def __init__(
        self, width: int, dim: int, depth: int, heads: int, grid: tuple[int, int], out: int
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", sincos_positions(grid, dim), persistent=False)
        self.blocks = nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, out)

    def forward(self, cls: Tensor | None, kept: Tensor, keep: Tensor) -> Tensor:
        """``cls`` (B, D) or None, ``kept`` (B, K, D) at patches ``keep`` (B, K) -> (B, L, out)."""
        tokens = self.embed(kept)  # (B, K, D) -> (B, K, dim)
        batch, length = len(tokens), len(self.positions)
        index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        full = self.mask_token.to(tokens.dtype).expand(batch, length, -1)
        full = full.scatter(1, index, tokens) + self.positions  # (B, L, dim)
        if cls is not None:
            full = torch.cat([self.embed(cls).unsqueeze(1).to(full.dtype), full], dim=1)
        out: Tensor = self.predict(self.norm(self.blocks(full)))
        return out[:, -length:]
