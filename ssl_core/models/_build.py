"""Encoders by the name of a timm model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import stems
from ..errors import HeadwaterError
from ._encoder import Encoder


def create(name: str, args: Mapping[str, Any] | None = None) -> Encoder:
    """A randomly initialised encoder (torch's global generator; seed it before the call).

    Args:
        name: any timm model name.
        args: keyword arguments of ``timm.create_model``, and ``stem`` (see ``stems.py``).

    Raises:
        HeadwaterError: unknown name, arguments the model refuses, or a stem it cannot have.
    """
    return build(name, dict(args or {}), pretrained=False)


def build(name: str, args: dict[str, Any], pretrained: bool) -> Encoder:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise HeadwaterError(
            f"backbone '{name}'",
            "is not a timm model",
            f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()",
        )
    try:
        plain = {k: v for k, v in args.items() if k != "stem"}
        model, plain = _timm(name, plain, pretrained)
    except (TypeError, ValueError, AssertionError) as error:
        raise HeadwaterError(
            f"arguments {args} of backbone '{name}'",
            f"are refused by timm ({error})",
            "change pretrain.backbone_args",
        ) from error
    if stem := args.get("stem"):
        stems.apply(model, name, stem, int(plain.get("in_chans", 3)))
        plain["stem"] = stem
    return Encoder(model, name, plain)


def _timm(name: str, args: dict[str, Any], pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model, and the arguments that build it again."""
    import timm

    flexible = {"dynamic_img_size": True, **args}  # positions follow the input's size
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **flexible), flexible
    except TypeError as error:
        if "dynamic_img_size" not in str(error) or "dynamic_img_size" in args:
            raise
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **args), args
