"""Other stems for timm models: the layers before the first block (``backbone_args: {stem: ...}``).

| Stem | ViT | ResNet | ConvNeXt |
|---|---|---|---|
| ``patchify`` | timm's own | 4x4 conv, stride 4 | timm's own |
| ``conv`` | strided 3x3 convs, 1x1 conv | | two strided 3x3 convs, 1x1 conv |
| ``resnet`` | | timm's own | 7x7 conv, stride 2, max pool |
| ``cifar`` | | 3x3 conv, stride 1 | |

All stems of a model give the same grid for the same image, but ``cifar``: its grid is four times
finer, for images of 32 px. Norm and activation that follow timm's stem stay (batch norm and ReLU
in a ResNet, layer norm in a ConvNeXt).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from .errors import HeadwaterError


def apply(model: Any, name: str, stem: str, channels: int) -> None:
    """Put another stem into a new timm model (called ``name`` in messages), in place.

    Raises:
        HeadwaterError: an unknown stem, or one that this model cannot have.
    """
    offered, build = _family(model)
    if stem not in offered:
        raise HeadwaterError(
            f"pretrain.backbone_args.stem '{stem}'",
            f"is not one that backbone '{name}' can have",
            f"choose {' or '.join(offered)}" if offered else "leave it out",
        )
    build(model, stem, channels)


def _family(model: Any) -> tuple[tuple[str, ...], Callable[[Any, str, int], None]]:
    """The stems that suit a model, and what builds them."""
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(model, ResNet):
        return ("resnet", "patchify", "cifar"), _resnet
    if isinstance(model, ConvNeXt):
        plain = isinstance(model.stem[0], nn.Conv2d) and model.stem[0].stride == (4, 4)
        return ("patchify", "resnet", "conv") if plain else ("patchify",), _convnext
    if isinstance(model, VisionTransformer):  # not of a hybrid, whose patches come from a CNN
        plain = isinstance(getattr(model.patch_embed, "proj", None), nn.Conv2d)
        plain = plain and not hasattr(model.patch_embed, "backbone")
        return ("patchify", "conv") if plain else ("patchify",), _vit
    return (), _vit


def conv_stem(channels: int, width: int, layers: int) -> nn.Sequential:
    """Early convolutions (arXiv 2106.14881): (B, channels, H, W) -> (B, width, H/2^n, W/2^n).

    ``layers`` strided 3x3 convs with batch norm and ReLU, each twice as wide as the one before,
    the last ``width``; then a 1x1 conv with bias.

    Raises:
        HeadwaterError: ``width`` cannot be halved often enough.
    """
    narrowest = 2 ** (layers - 1)
    if width % narrowest:
        raise HeadwaterError(
            f"width {width} of a conv stem with {layers} strides",
            f"is not a multiple of {narrowest}",
            "change embed_dim (ViT) or dims (ConvNeXt) in pretrain.backbone_args",
        )
    widths = [channels, *(width // 2**i for i in reversed(range(layers)))]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        parts += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Conv2d(width, width, 1))


def _vit(model: Any, stem: str, channels: int) -> None:
    """The conv stem costs the FLOPs of a block, so the last block goes: depth is one less.

    timm's PatchEmbed stays around it, with its checks of the image size and its output format.
    """
    if stem != "conv":
        return
    patch = int(model.patch_embed.patch_size[0])
    layers = patch.bit_length() - 1
    if patch < 2 or patch != 2**layers or len(set(model.patch_embed.patch_size)) > 1:
        raise HeadwaterError(
            f"patch_size {model.patch_embed.patch_size} with stem 'conv'",
            "is no square with a power of two for its side",
            "set patch_size to 4, 8 or 16 in pretrain.backbone_args",
        )
    if len(model.blocks) < 2:
        raise HeadwaterError(
            f"depth {len(model.blocks)} with stem 'conv'",
            "leaves no block: the stem stands for one",
            "set depth to at least 2 in pretrain.backbone_args",
        )
    model.patch_embed.proj = conv_stem(channels, model.patch_embed.proj.out_channels, layers)
    del model.blocks[-1], model.feature_info[-1]


def _resnet(model: Any, stem: str, channels: int) -> None:
    if stem == "resnet":
        return
    width = [m for m in model.conv1.modules() if isinstance(m, nn.Conv2d)][-1].out_channels
    side, stride, padding = (4, 4, 0) if stem == "patchify" else (3, 1, 1)
    model.conv1 = nn.Conv2d(channels, width, side, stride, padding, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    if stem == "cifar":
        for entry in model.feature_info:
            entry["reduction"] = max(1, entry["reduction"] // 4)


def _convnext(model: Any, stem: str, channels: int) -> None:
    if stem == "patchify":
        return
    first, norm = model.stem[0], model.stem[1]
    if stem == "conv":
        model.stem = nn.Sequential(conv_stem(channels, first.out_channels, 2), norm)
        return
    conv = nn.Conv2d(channels, first.out_channels, 7, stride=2, padding=3)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    model.stem = nn.Sequential(conv, norm, nn.MaxPool2d(3, stride=2, padding=1))
