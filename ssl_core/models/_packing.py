"""Groups of crops of several sizes through a ViT at once (see ``packed.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._outputs import Crops, EncoderOutput, Need, PackedOutput, needed

if TYPE_CHECKING:
    from ._encoder import Encoder


def pack(encoder: Encoder, groups: list[Crops]) -> PackedOutput:
    """All groups through the blocks at once (see ``packed.py``)."""
    from .. import packed

    model: Any = encoder.model
    for crops in groups:
        encoder.require_fit(crops.images)
    tokens = [encoder.embed(crops) for crops in groups]
    sizes = tuple((t.shape[0], t.shape[1]) for t in tokens)
    x = torch.cat([t.flatten(0, 1) for t in tokens])  # G x (B, N, D) -> (T, D)
    cut = all(encoder.cuts(crops) for crops in groups)
    plan = packed.Plan(sizes)
    if cut:
        masks = [_wanted(c.need, n) for c, (_, n) in zip(groups, sizes, strict=True)]
        rows = packed.rows(sizes, masks).to(x.device, non_blocking=True)
        plan = packed.Plan(sizes, rows, first=all(m is None for m in masks))
    out = model.norm(packed.run(model.blocks, x, plan, encoder.checkpointing))
    if cut:
        parts = _cut_outputs(encoder, out, groups)
    else:
        parts = _whole_outputs(encoder, out, groups, sizes)
    return PackedOutput(parts, torch.cat([part.pooled for part in parts]))


def _wanted(need: Need, length: int) -> Tensor | None:
    """The mask of needed patches over all tokens: (B, L) -> (B, N)."""
    if isinstance(need, str) or not need.any():
        return None
    return nn.functional.pad(need.flatten(1), (length - need.flatten(1).shape[1], 0))


def _cut_outputs(encoder: Encoder, out: Tensor, groups: list[Crops]) -> list[EncoderOutput]:
    """Rows of the last block, class tokens first, -> outputs by group."""
    model: Any = encoder.model
    counts = [len(crops.images) for crops in groups]
    hidden = [0 if isinstance(c.need, str) else int(c.need.sum()) for c in groups]
    pieces = out.split([*counts, *hidden])
    firsts, patches = pieces[: len(groups)], pieces[len(groups) :]
    parts = []
    for crops, first, patch in zip(groups, firsts, patches, strict=True):
        pooled = model.forward_head(first.unsqueeze(1), pre_logits=True)  # (B, D) -> (B, 1, D)
        named = EncoderOutput(first, patch, pooled)
        parts.append(needed(named, "pooled") if isinstance(crops.need, str) else named)
    return parts


def _whole_outputs(
    encoder: Encoder, out: Tensor, groups: list[Crops], sizes: tuple[tuple[int, int], ...]
) -> list[EncoderOutput]:
    """(T, D) -> outputs by group."""
    parts = []
    pieces = out.split([b * n for b, n in sizes])
    for crops, size, piece in zip(groups, sizes, pieces, strict=True):
        tokens = piece.unflatten(0, size)  # (B*N, D) -> (B, N, D)
        parts.append(needed(encoder.output(tokens, crops.images, crops.keep), crops.need))
    return parts
