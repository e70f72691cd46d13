"""Heads that are thrown away after pretraining."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projector(
    width: int, hidden: int, out: int, layers: int = 2, last_norm: bool = True
) -> nn.Sequential:
    """MLP with batch norm and ReLU after every layer but the last: (B, width) -> (B, out).

    ``last_norm`` ends it with a batch norm without affine part (SimCLR, MoCo v3), else it ends
    with a linear layer that has a bias (predictors of BYOL and SimSiam). No layers: the identity.
    """
    if layers < 1:
        return nn.Sequential()
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
        unit = F.normalize(self.mlp(x), dim=-1)
        if torch.is_autocast_enabled(unit.device.type):
            unit = unit.to(torch.get_autocast_dtype(unit.device.type))
        flat = unit.flatten(0, -2)
        logits: Tensor = _Cosines.apply(flat, self.prototypes, frozen)  # type: ignore[no-untyped-call]
        out: Tensor = logits.unflatten(0, unit.shape[:-1])
        return out


class _Cosines(torch.autograd.Function):
    """Products of rows with unit prototypes: x (N, d), w (K, d) -> x @ (w / |w|)^T, (N, K).

    As ``F.linear(x, F.normalize(w))``, but K x d tensors, of which DINO's 65,536 prototypes make
    67 MB each, are read once to measure them and written once for the gradient; the divisions
    are by column of the much smaller logits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, frozen: bool) -> Tensor:
        length = torch.linalg.vector_norm(weight, dim=1).clamp_min(1e-12)  # (K,)
        logits = (x @ weight.to(x.dtype).T).div_(length)
        ctx.save_for_backward(x, weight, length, logits)
        ctx.frozen = frozen
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, length, logits = ctx.saved_tensors
        grad = (grads[0] / length).to(x.dtype)  # (N, K)
        to_x = grad @ weight.to(x.dtype)
        if ctx.frozen:  # not None: DDP waits for a gradient of every parameter
            return to_x, torch.zeros_like(weight), None
        # The gradient's part along w goes: d/dw (x.w/|w|) = (x - cosine * w/|w|) / |w|.
        along = (grad * logits).sum(0, dtype=length.dtype) / length  # (K,)
        to_w = weight * along.neg_().unsqueeze(1)
        same = x.dtype == to_w.dtype
        return to_x, to_w.addmm_(grad.T, x) if same else to_w.add_(grad.T @ x), None


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
        from .packed import PackedBlock

        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", sincos_positions(grid, dim), persistent=False)
        self.blocks = nn.Sequential(*[PackedBlock(dim, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, out)

    def forward(
        self, cls: Tensor | None, kept: Tensor, keep: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """``cls`` (B, D) or None, ``kept`` (B, K, D) at patches ``keep`` (B, K) -> (B, L, out).

        With ``hidden`` (B, M) only these patches are predicted, (B, M, out): the last block then
        computes no other.
        """
        tokens = self.embed(kept)  # (B, K, D) -> (B, K, dim)
        batch, length = len(tokens), len(self.positions)
        index = _over(keep, tokens)
        full = self.mask_token.to(tokens.dtype).expand(batch, length, -1)
        full = full.scatter(1, index, tokens) + self.positions  # (B, L, dim)
        if cls is not None:
            full = torch.cat([self.embed(cls).unsqueeze(1).to(full.dtype), full], dim=1)
        if hidden is None or not len(self.blocks):
            every = cast(Tensor, self.predict(self.norm(self.blocks(full))))[:, -length:]
            return every if hidden is None else every.gather(1, _over(hidden, every))
        some = self._last(full, hidden + (full.shape[1] - length))
        return cast(Tensor, self.predict(self.norm(some)))

    def _last(self, full: Tensor, at: Tensor) -> Tensor:
        """All blocks, the last for tokens ``at`` (B, M) only: (B, N, dim) -> (B, M, dim)."""
        from . import packed

        batch, length = full.shape[:2]
        rows = (at + length * torch.arange(batch, device=at.device).unsqueeze(1)).flatten()
        plan = packed.Plan(((batch, length),), rows)
        out = packed.run(list(self.blocks), full.flatten(0, 1), plan)
        return cast(Tensor, out.unflatten(0, at.shape))


def _over(index: Tensor, values: Tensor) -> Tensor:
    """(B, M) -> (B, M, D), to gather whole rows of (B, L, D)."""
    return index.unsqueeze(-1).expand(-1, -1, values.shape[-1])
