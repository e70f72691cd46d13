"""Pixels as encoders take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import HeadwaterError

Colour = tuple[float, ...]


def normalisation(channels: int) -> tuple[Colour, Colour]:
    """Mean and standard deviation of our own encoders' inputs, on the [0, 1] scale."""
    return (0.5,) * channels, (0.25,) * channels


def preprocess(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) or (B, H, W, C) -> normalised float32 (B, C, H, W), C being len(mean).

    Raises:
        HeadwaterError: images of other channels.
    """
    if images.shape[-1] == len(mean) and images.shape[1] != len(mean):
        images = images.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    if images.shape[1] != len(mean):
        raise HeadwaterError(
            f"images of {images.shape[1]} channels",
            f"do not suit an encoder for {len(mean)}",
            "set data.channels as it was when the encoder was trained, or train anew",
        )
    scale = torch.tensor(std, device=images.device).mul(255).view(-1, 1, 1)
    shift = torch.tensor(mean, device=images.device).div(torch.tensor(std, device=images.device))
    return images.float().div_(scale).sub_(shift.view(-1, 1, 1))
