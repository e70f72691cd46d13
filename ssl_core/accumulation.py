"""Large batches in little memory, with the gradient of the whole batch.

Where the loss is a mean over images, gradients of parts of the batch are added up. Any other
loss compares the images of a batch: then the encoder alone runs part by part, its activations
computed again in the backward pass, and heads and loss see the whole batch. That is GradCache
(arXiv 2101.06983) by way of activation checkpointing (arXiv 1604.06174); it costs a second
forward pass of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .errors import HeadwaterError
from .models import Crops, Encoder, EncoderOutput, Need, PackedOutput


def by_parts(plugin: ModuleType) -> bool:
    """Whether the method's loss is a mean over images, the same number of terms for each."""
    return bool(getattr(plugin, "PER_SAMPLE", False))


def require_exact(plugin: ModuleType, method: nn.Module, parallel: str) -> None:
    """Refuse accumulation where the gradient would not be that of the whole batch.

    Raises:
        HeadwaterError: batch norm within what runs part by part, or FSDP (whose blocks are not
            gathered for a second forward pass).
    """
    fix = "set pretrain.accumulate: 1 and a larger batch_size or more processes"
    parts = method if by_parts(plugin) else method.encoder
    if any(isinstance(m, _BatchNorm) for m in parts.modules()):  # type: ignore[union-attr]
        rule = "normalises over the images of a part of the batch, not of the whole"
        raise HeadwaterError("batch norm in the encoder", rule, f"choose a ViT, or {fix}")
    if parallel == "fsdp" and not by_parts(plugin):
        name = plugin.__name__.rpartition(".")[2]
        rule = "cannot run its encoder part by part under pretrain.parallel: fsdp"
        raise HeadwaterError(f"method {name}", rule, fix)


def run_by_parts(encoder: Encoder, parts: int) -> None:
    """From now on ``encoder`` takes a batch in ``parts`` and keeps no activations of them."""
    encoder.forward = _by_parts(encoder.forward, parts)  # type: ignore[method-assign]


def _by_parts(forward: Callable[..., Any], parts: int) -> Callable[..., Any]:
    def run(
        x: Tensor | list[Crops],
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        token: Tensor | None = None,
        need: Need = "all",
    ) -> EncoderOutput | PackedOutput:
        """As ``Encoder.forward``."""
        groups = x if isinstance(x, list) else [Crops(x, keep, mask, token, need)]
        pieces = zip(*(_split(group, parts) for group in groups), strict=True)
        outs = [checkpoint(one, piece, use_reentrant=False) for piece in pieces]
        whole = [_joined(list(column)) for column in zip(*outs, strict=True)]
        if not isinstance(x, list):
            return whole[0]
        return PackedOutput(whole, torch.cat([out.pooled for out in whole]))

    def one(piece: tuple[Crops, ...]) -> list[EncoderOutput]:
        if len(piece) > 1:
            found: list[EncoderOutput] = forward(list(piece)).parts
            return found
        return [forward(*piece[0])]

    return run


def _split(crops: Crops, parts: int) -> list[Crops]:
    """Every tensor by image, (B, ...) -> parts of (B/parts, ...), but the token (D,)."""
    columns: list[Any] = [
        field.tensor_split(parts) if isinstance(field, Tensor) else (field,) * parts
        for field in (crops.images, crops.keep, crops.mask, crops.need)
    ]
    return [
        Crops(images, keep, mask, crops.token, need)
        for images, keep, mask, need in zip(*columns, strict=True)
    ]


def _joined(outs: list[EncoderOutput]) -> EncoderOutput:
    """(B/parts, ...) of each part -> (B, ...)."""
    columns: list[Any] = [
        None if column[0] is None else torch.cat(column) for column in zip(*outs, strict=True)
    ]
    return EncoderOutput(*columns)
