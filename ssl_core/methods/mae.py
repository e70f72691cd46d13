"""MAE (arXiv 2111.06377): predict the pixels of hidden patches from the few that are seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import HeadwaterError
from ..heads import MaskedDecoder
from ..losses import mae as loss
from ..models import Encoder
from ..types import Task, View
from ._recipe import Recipe


class Config(Recipe):
    """Defaults for small images and data sets of thousands."""

    lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.95)
    ratio: float = 0.75  # share of patches hidden
    norm_pix: bool = False  # the paper: True; False is meant for short runs
    decoder_dim: int = 96
    decoder_depth: int = 1
    decoder_heads: int = 3
    scale: tuple[float, float] = (0.4, 1.0)
    flip: float = 0.5


PAPER = {
    "lr": 1.5e-4,
    "norm_pix": True,
    "decoder_dim": 512,
    "decoder_depth": 8,
    "decoder_heads": 16,
    "scale": (0.2, 1.0),
}
KNOB = "lower pretrain.options.ratio"
PER_SAMPLE = True  # the loss is a mean over images: gradients of parts may be added up


class Method(nn.Module):
    """ViT encoder on the kept patches, light decoder on all.

    Raises:
        HeadwaterError: the encoder is no ViT, the patch size does not divide the image, or the
            ratio leaves nothing to see or nothing to predict.
    """

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task, self.encoder = cfg, task, encoder
        image_size = task.image_size
        if not encoder.is_vit or image_size % encoder.stride:
            raise HeadwaterError(
                f"backbone '{encoder.name}' at {image_size} px",
                "is not a ViT whose patch size divides the image",
                "set pretrain.backbone to a vit_*, and crop_size to a multiple of patch_size",
            )
        self.patch = encoder.stride
        side = image_size // self.patch
        self.kept = int(side * side * (1 - cfg.ratio))
        if not 0 < self.kept < side * side:
            raise HeadwaterError(
                f"ratio {cfg.ratio}",
                f"keeps {self.kept} of {side * side} patches",
                "choose pretrain.options.ratio so that some are kept and some hidden",
            )
        self.decoder = MaskedDecoder(
            encoder.embed_dim,
            cfg.decoder_dim,
            cfg.decoder_depth,
            cfg.decoder_heads,
            (side, side),
            self.patch**2 * encoder.channels,
        )

    @property
    def views(self) -> list[View]:
        """One crop with a flip: MAE needs no other augmentation."""
        return [View(self.task.image_size, self.cfg.scale, flip=self.cfg.flip)]

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """One (B, C, S, S) -> loss and monitors. Masks come from torch's global generator.

        ``hidden``: share of patches that were masked.
        """
        images = views[0]
        side = self.task.image_size // self.patch
        keep, mask = random_mask(len(images), side, self.kept, images.device)
        out = self.encoder(images, keep=keep)
        hidden = hidden_patches(mask, side * side - self.kept)
        pred = self.decoder(out.cls, out.patch, keep, hidden)  # (B, M, P)
        target = loss.targets(images, self.patch, self.cfg.norm_pix)  # (B, L, P)
        target = target.gather(1, hidden.unsqueeze(-1).expand_as(pred))
        value = loss.mae(pred, target, torch.ones_like(hidden, dtype=torch.bool))
        # Parameters that only pooling uses stay in the graph: DDP waits for their gradient.
        return value + 0 * out.pooled.float().sum(), {"hidden": mask.float().mean()}

    def after_step(self, step: int) -> None:
        """Nothing to do: there is no teacher."""


def hidden_patches(mask: Tensor, count: int) -> Tensor:
    """Indices (batch, count) int64 of the true entries of each row, in order."""
    return mask.byte().argsort(dim=1, descending=True, stable=True)[:, :count]


def random_mask(batch: int, side: int, kept: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept patches (batch, kept) int64, and the mask (batch, side*side), true where hidden."""
    order = torch.rand(batch, side * side, device=device).argsort(1)
    keep = order[:, :kept]
    mask = torch.ones(batch, side * side, dtype=torch.bool, device=device)
    return keep, mask.scatter_(1, keep, False)
