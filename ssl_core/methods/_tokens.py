"""What iBOT and DINOv2 share: a teacher that sees all patches, a student that does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import HeadwaterError
from ..heads import PrototypeHead
from ..models import Crops, Encoder, Need
from ..types import Task, View
from . import _masks, dino
from ._recipe import Range
from ._teacher import Taught, follow, frozen_copy, momentum


class Config(dino.Config):
    """DINO's options and those of masking. A ``tied`` head serves images and patches alike."""

    tied: bool = True
    patch_weight: float = 1.0  # 0: DINO, nothing is masked
    mask_share: float = 0.5  # of the global crops
    mask_ratio: Range = (0.1, 0.5)  # of a masked crop's patches


class Method(Taught):
    """Student and teacher, each encoder + prototype heads, and the student's mask token.

    Raises:
        HeadwaterError: the encoder is no ViT whose patch size divides the image, or the largest
            ratio masks no patch.
    """

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__()
        self.cfg, self.task = cfg, task
        self.side = _masks.side(encoder, task.image_size)
        _check(cfg, self.side**2)
        self.encoder = encoder
        self.head = _head(encoder, cfg)
        self.patch_head = None if cfg.tied else _head(encoder, cfg)
        self.teacher, self.teacher_head = frozen_copy(self.encoder), frozen_copy(self.head)
        self.teacher_patch_head = None if self.patch_head is None else frozen_copy(self.patch_head)
        self.mask_token = nn.Parameter(torch.zeros(encoder.embed_dim))
        self.train()

    @property
    def views(self) -> list[View]:
        """Two global views, then the local ones."""
        return self.cfg.crops(self.task.image_size, self.encoder.stride)

    def _mask(self, counts: Tensor, smallest: float, like: Tensor) -> Tensor:
        """(2B,) -> (2B, L), on the CPU; empty when patches do not count.

        There, how many patches are hidden is known without waiting for the device.
        """
        counts = counts.cpu()
        return _masks.block_masks(
            counts if self.cfg.patch_weight else 0 * counts, self.side, smallest
        )

    def _teach(self, views: list[Tensor], need: Need = "all") -> tuple[Tensor, Tensor]:
        """Logits (2, B, K) of the whole global crops, and features of their patches.

        (2B, h, w, D), or with a mask as ``need`` (M, D).
        """
        out = self.teacher(torch.cat(views[:2]), need=need)
        logits = self.teacher_head(out.pooled).unflatten(0, (2, -1))  # (2B, K) -> (2, B, K)
        return logits, out.patch

    def _teach_patches(self, patches: Tensor) -> Tensor:
        """(..., D) -> (..., K)."""
        head = self.teacher_head if self.teacher_patch_head is None else self.teacher_patch_head
        out: Tensor = head(patches)
        return out

    def _learn(self, views: list[Tensor], mask: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features (2B, D) of the masked global crops, logits (V, B, K), masked patches' (M, K).

        Local crops are not masked.
        """
        frozen = step < self.cfg.freeze * self.task.steps
        whole = torch.cat(views[:2])
        on_device = mask.to(whole.device, non_blocking=True)
        groups = [Crops(whole, mask=on_device, token=self.mask_token, need=mask)]
        groups += [Crops(torch.cat(g), need="pooled") for g in dino.by_size(views[2:])]
        out, *local = self.encoder.many(groups)
        logits = self.head(torch.cat([out.pooled, *(x.pooled for x in local)]), frozen=frozen)
        head = self.head if self.patch_head is None else self.patch_head
        return out.pooled, logits.unflatten(0, (len(views), -1)), head(out.patch, frozen=frozen)

    def _chance(self, mask: Tensor) -> Tensor:
        """Loss of uniform predictions; crops without masked patches have no patch loss."""
        return (1 + self.cfg.patch_weight * mask.any(1).float().mean()) * math.log(
            self.cfg.prototypes
        )

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher."""
        m = momentum(step, self.task.steps, self.cfg.momentum, dino.MEMORY)
        follow(self.teacher, self.encoder, m)
        follow(self.teacher_head, self.head, m)
        if self.patch_head is not None and self.teacher_patch_head is not None:
            follow(self.teacher_patch_head, self.patch_head, m)


def _head(encoder: Encoder, cfg: Config) -> PrototypeHead:
    return PrototypeHead(encoder.embed_dim, cfg.hidden, cfg.bottleneck, cfg.prototypes)


def _check(cfg: Config, patches: int) -> None:
    if int(cfg.mask_ratio[1] * patches) < 1:
        raise HeadwaterError(
            f"mask_ratio {cfg.mask_ratio}",
            f"masks none of {patches} patches",
            "raise pretrain.options.mask_ratio or crop_size, or lower the backbone's patch_size",
        )
