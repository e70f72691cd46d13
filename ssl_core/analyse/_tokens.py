"""What happens between an encoder's ends: tokens or feature maps by layer, and attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import models
from ._subject import Rows, Subject

BYTES = 192 * 2**20  # of what one batch's look may return
BATCH = 128
CELLS = 8  # a side: coarser maps of a CNN say little of places
NO_ATTENTION = "has no attention that could be read: it is no plain ViT"


class Layer(NamedTuple):
    """What one layer gives: ``maps`` (B, h, w, D) and the tokens before it, (B, P, D)."""

    name: str
    maps: Tensor
    prefix: Tensor


Look = Callable[[models.Encoder, Tensor], Sequence[Any]]


def has_attention(encoder: models.Encoder) -> bool:
    """Whether :func:`attentions` can read this encoder."""
    if not encoder.is_vit:
        return False
    parts = [getattr(block, "attn", None) for block in _stages(encoder)]
    return all(
        hasattr(part, "fused_attn") and isinstance(getattr(part, "attn_drop", None), nn.Module)
        for part in parts
    )


def has_class_token(encoder: models.Encoder) -> bool:
    """Whether the first token is one that stands for the image, and no register."""
    return encoder.is_vit and getattr(encoder.model, "cls_token", None) is not None


def stream(
    subject: Subject, rows: Rows, look: Look, held: Look | None = None
) -> Iterator[tuple[Rows, Sequence[Any]]]:
    """``look(encoder, inputs)`` batch by batch: as many images at once as memory allows.

    ``held``: what the look holds on the way, where that is more than it returns.
    """
    if not len(rows):
        return
    first = _seen(subject, rows[:1], held or look)
    size = sum(t.numel() * t.element_size() for item in first for t in _tensors(item))
    step = int(min(BATCH, max(1, BYTES // max(size, 1))))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        yield part, _seen(subject, part, look)


@torch.inference_mode()
def _seen(subject: Subject, rows: Rows, look: Look) -> Sequence[Any]:
    return look(subject.encoder, subject.inputs(rows))


def _tensors(item: Any) -> list[Tensor]:
    return [t for t in (item if isinstance(item, tuple) else (item,)) if isinstance(t, Tensor)]


def _stages(encoder: models.Encoder) -> list[nn.Module]:
    """Blocks of a ViT; else the modules whose output timm names as the features of a stage."""
    model: Any = encoder.model
    if encoder.is_vit:
        return list(model.blocks)
    return [model.get_submodule(info["module"]) for info in model.feature_info]


@contextmanager
def _hooks(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers(encoder: models.Encoder, x: Tensor, halves: bool = False) -> list[Layer]:
    """What each block of a ViT or stage of a CNN gives for images (B, C, H, W), in order.

    Of a ViT, layer 0 is what the first block takes. ``halves`` adds ``3/attention``: the tokens
    of block 3 between its attention and its MLP, where the block has such a place.
    """
    found: list[tuple[str, Tensor]] = []

    def after(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.append((name, output))

    def before(name: str) -> Callable[..., None]:
        return lambda module, inputs: found.append((name, inputs[0]))

    stages: list[Any] = _stages(encoder)
    handles = [stages[0].register_forward_pre_hook(before("0"))] if encoder.is_vit else []
    for number, stage in enumerate(stages, 1):
        handles.append(stage.register_forward_hook(after(str(number))))
        if halves and encoder.is_vit and isinstance(getattr(stage, "norm2", None), nn.Module):
            handles.append(stage.norm2.register_forward_pre_hook(before(f"{number}/attention")))
    with _hooks(handles):
        encoder(x)
    return [_layer(encoder, name, value, x) for name, value in found]


def _layer(encoder: models.Encoder, name: str, value: Tensor, x: Tensor) -> Layer:
    if value.ndim == 4:
        last = getattr(encoder.model, "output_fmt", "NCHW") == "NHWC"
        maps = value if last else value.permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)
        return Layer(name, maps.float(), maps.new_zeros(len(maps), 0, maps.shape[-1]))
    grid = (x.shape[-2] // encoder.stride, x.shape[-1] // encoder.stride)
    prefix, patches = value[:, : encoder.n_prefix], value[:, encoder.n_prefix :]
    return Layer(name, patches.unflatten(1, grid).float(), prefix.float())  # -> (B, h, w, D)


def pooled(encoder: models.Encoder, layer: Layer) -> Tensor:
    """One vector per image, (B, D): the class token where the encoder pools it, else the mean.

    Of layer 0 it is always the mean: no image has reached the class token there.
    """
    pools = encoder.is_vit and getattr(encoder.model, "global_pool", "") == "token"
    if pools and layer.name != "0":
        return layer.prefix[:, 0]
    return layer.maps.flatten(1, 2).mean(1)  # (B, h, w, D) -> (B, D)


def attentions(encoder: models.Encoder, x: Tensor) -> list[Tensor]:
    """Weights of each block's attention, (B, heads, N, N) after the softmax.

    timm's fused kernel keeps none, so its plain path runs meanwhile.
    """
    found: list[Tensor] = []
    parts: list[Any] = [stage.attn for stage in _stages(encoder)]
    handles = [
        part.attn_drop.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        for part in parts
    ]
    with ExitStack() as stack:
        stack.enter_context(_hooks(handles))
        for part in parts:
            stack.callback(setattr, part, "fused_attn", part.fused_attn)
            part.fused_attn = False
        encoder(x)
    return found


def dense(encoder: models.Encoder, x: Tensor) -> list[Layer]:
    """The map that tells places apart, as a list of one.

    A ViT's own patches; of a CNN the deepest stage with ``CELLS`` a side, or the first of all.
    """
    if encoder.is_vit:
        out = encoder(x)
        return [Layer("output", out.patch.float(), out.patch.new_zeros(len(x), 0, 0))]
    every = layers(encoder, x)
    fine = [layer for layer in every if min(layer.maps.shape[1:3]) >= CELLS]
    return [fine[-1] if fine else every[0]]


def maps(subject: Subject, rows: Rows) -> tuple[str, Tensor]:
    """Name and maps (B, h, w, D) on the CPU of :func:`dense` for all of ``rows``."""
    parts = [seen[0] for _, seen in stream(subject, rows, dense)]
    return parts[0].name, torch.cat([part.maps.cpu() for part in parts])


@torch.inference_mode()
def dense_of(subject: Subject, images: Tensor) -> Tensor:
    """Maps (B, h, w, D) on the CPU of :func:`dense` for other images, uint8 (B, C, S, S)."""
    return dense(subject.encoder, subject.normalised(images))[0].maps.cpu()
