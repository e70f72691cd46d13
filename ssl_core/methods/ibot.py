"""iBOT (arXiv 2111.07832): DINO, and the same for patches that the student does not see."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import dino as loss
from ..losses.ibot import ibot
from ..models import Encoder
from ..types import Task
from . import _masks, _tokens, dino
from ._recipe import Range


class Config(_tokens.Config):
    """Defaults for small images and data sets of thousands."""

    patch_temperature: Range = (0.04, 0.04)  # the teacher's for patches: at first, after warm-up


# The ViT-S run of 800 epochs. Its prototypes are not unit vectors, ours are.
PAPER = dino.PAPER | {
    "prototypes": 8192,
    "teacher_temperature": (0.04, 0.07),
    "patch_temperature": (0.04, 0.07),
    "scale": (0.25, 1.0),
    "local_scale": (0.05, 0.25),
    "locals_": 10,
}

KNOB = dino.KNOB


class Method(_tokens.Method):
    """Centred and sharpened targets for images and for patches, with a centre each.

    Raises:
        HeadwaterError: the encoder is no ViT whose patch size divides the image, or the largest
            ratio masks no patch.
    """

    cfg: Config
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, encoder: Encoder, cfg: Config, task: Task) -> None:
        super().__init__(encoder, cfg, task)
        self.register_buffer("centre", torch.zeros(cfg.prototypes))
        self.register_buffer("patch_centre", torch.zeros(cfg.prototypes))
        self._seen: tuple[Tensor, Tensor] | None = None  # this step's means of teacher's logits

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Views as in ``views`` -> loss and monitors.

        Monitors as DINO's, of images; ``patch`` is the patches' loss, ``masked`` the share of
        the global crops' patches that was hidden.
        """
        c, count = self.cfg, 2 * len(views[0])
        warm = round(c.warm * self.task.steps)
        t = loss.warm_temperature(step, warm, *c.teacher_temperature)
        t_patch = loss.warm_temperature(step, warm, *c.patch_temperature)
        counts = _masks.coin_counts(count, c.mask_share, c.mask_ratio, self.side**2)
        mask = self._mask(counts, (self.side // 3) ** 2, views[0])
        with torch.no_grad():
            logits, patches = self._teach(views)
            target = loss.targets(logits, self.centre, t)
            # All patches, since the centre is the mean over all: (2B, h, w, D) -> (2B, L, K)
            seen = self._teach_patches(patches.flatten(1, 2))
            patch_target = loss.targets(
                seen[mask.to(seen.device)].unsqueeze(0), self.patch_centre, t_patch
            )[0]
            self._seen = loss.batch_centre(logits), loss.batch_centre(seen)
        _, student, masked = self._learn(views, mask, step)
        mask = mask.to(masked.device, non_blocking=True)
        whole = loss.dino(student, target, c.student_temperature)
        patch = ibot(masked, patch_target, mask, c.student_temperature)
        spread = loss.entropy(target)
        return whole + c.patch_weight * patch, {
            "entropy": spread,
            "kl": whole.detach() - spread,
            "patch": patch.detach(),
            "masked": mask.float().mean(),
            "temperature": t,
            "chance": self._chance(mask),
        }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher and the centres."""
        super().after_step(step)
        if self._seen is not None:
            # Here, not in forward: a step that the loop rejects as non-finite moves nothing.
            for centre, mean in zip((self.centre, self.patch_centre), self._seen, strict=True):
                centre.lerp_(mean.to(centre), 1 - self.cfg.centre_momentum)
            self._seen = None
