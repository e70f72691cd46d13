"""SimMIM (arXiv 2111.09886): predict the pixels of hidden squares with a linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import HeadwaterError
from ..losses.mae import patchify
from ..losses.simmim import simmim
from ..models import Encoder
from ..types import Task, View
from . import _masks
from ._recipe import Recipe


class Config(Recipe):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    mask_patch: int | None = None  # side of a hidden square in pixels; None: the patch size
    ratio: float = 0.6  # share of squares hidden
    scale: tuple[float, float] = (0.4, 1.0)
    flip: float = 0.5


PAPER = {
    "lr": 5e-5,  # 1e-4 for 512 images (the 512 from memory)
    "betas": (0.9, 0.999),  # from memory
    "mask_patch": 32,
    "scale": (0.67, 1.0),
}
KNOB = "lower pretrain.options.ratio"
PER_SAMPLE = True  # the loss is a mean over images: gradients of parts may be added up


class Method(nn.Module):
    """ViT encoder on all tokens, hidden ones replaced by a mask token, and a linear decoder.

    Raises:
        HeadwaterError: as :class:`Pixels`.
    """

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task, self.encoder = cfg, task, encoder
        self.pixels = Pixels(encoder, task.image_size, cfg.mask_patch, cfg.ratio)

    @property
    def views(self) -> list[View]:
        """One crop with a flip."""
        return [View(self.task.image_size, self.cfg.scale, flip=self.cfg.flip)]

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """One (B, C, S, S) -> loss and monitors. Masks come from torch's global generator.

        ``hidden``: share of patches that were masked.
        """
        value, mask = self.pixels(self.encoder, views[0])
        return value, {"hidden": mask.float().mean()}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""


class Pixels(nn.Module):
    """Mask token, linear decoder, and the loss.

    Args:
        unit: side of a hidden square in pixels; None: the patch size.
        ratio: share of squares hidden, rounded up.

    Raises:
        HeadwaterError: the encoder is no ViT whose patch size divides the image, the squares do
            not fit, or nothing would stay visible or hidden.
    """

    def __init__(self, encoder: Encoder, image_size: int, unit: int | None, ratio: float) -> None:
        super().__init__()
        _masks.side(encoder, image_size)
        self.patch = encoder.stride
        unit = self.patch if unit is None else unit
        if unit <= 0 or unit % self.patch or image_size % unit:
            raise HeadwaterError(
                f"mask_patch {unit}",
                f"is not a multiple of the patch size {self.patch} that divides {image_size} px",
                "set pretrain.options.mask_patch to one",
            )
        self.cells, self.unit = image_size // unit, unit // self.patch
        self.hidden = math.ceil(ratio * self.cells**2)
        if not 0 < self.hidden < self.cells**2:
            raise HeadwaterError(
                f"ratio {ratio}",
                f"hides {self.hidden} of {self.cells**2} squares of {unit} px",
                "choose pretrain.options.ratio and mask_patch so that some are seen, some hidden",
            )
        self.mask_token = nn.Parameter(torch.empty(encoder.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Linear(encoder.embed_dim, self.patch**2 * encoder.channels)

    def forward(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) -> loss, and the mask (B, L), true where hidden."""
        mask = _masks.cell_masks(len(images), self.cells, self.unit, self.hidden, images.device)
        out = encoder(images, mask=mask, token=self.mask_token)
        # A linear layer per token is the paper's 1x1 convolution with pixel shuffle.
        pred = self.decoder(out.patch.flatten(1, 2))  # (B, h, w, D) -> (B, L, P)
        value = simmim(pred, patchify(images, self.patch), mask)
        # Parameters that only pooling uses stay in the graph: DDP waits for their gradient.
        return value + 0 * out.pooled.float().sum(), mask
