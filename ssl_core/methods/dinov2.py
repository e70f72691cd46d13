"""DINOv2 (arXiv 2304.07193): iBOT with balanced targets, and features pushed apart by KoLeo.

Registers (arXiv 2309.16588) are the backbone's: ``pretrain.backbone_args: {reg_tokens: 4}``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import dino as loss
from ..losses.ibot import ibot
from ..losses.koleo import koleo
from ..losses.sinkhorn import sinkhorn
from . import _masks, _tokens, dino


class Config(_tokens.Config):
    """Defaults for small images and data sets of thousands. There is no centre to move."""

    iterations: int = 3  # of Sinkhorn-Knopp
    koleo_weight: float = 0.1
    smallest_block: int = 4  # patches
    scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)


# The short run on ImageNet-1k, with tied heads. The paper's lr goes with the square root of the
# batch, 4e-3 for 1024 images; ours, linear, meets it there. Its lr also falls with depth.
PAPER = dino.PAPER | {
    "lr": 1e-3,
    "prototypes": 65536,
    "teacher_temperature": (0.04, 0.07),
    "momentum": 0.992,
    "scale": (0.32, 1.0),
    "local_scale": (0.05, 0.32),
    "locals_": 8,
}

KNOB = "raise pretrain.options.momentum or koleo_weight, or lower teacher_temperature"


class Method(_tokens.Method):
    """Sinkhorn-Knopp over all ranks' global crops, and over all their masked patches.

    Raises:
        HeadwaterError: the encoder is no ViT whose patch size divides the image, or the largest
            ratio masks no patch.
    """

    cfg: Config

    def forward(self, views: list[Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Views as in ``views`` -> loss and monitors.

        Monitors as iBOT's and ``koleo``, the sum over both global crops. The spread of features
        is no sign of the prototypes' use: ``chance`` takes KoLeo as it is.
        """
        c, count = self.cfg, 2 * len(views[0])
        t = loss.warm_temperature(step, round(c.warm * self.task.steps), *c.teacher_temperature)
        counts = _masks.spread_counts(count, c.mask_share, c.mask_ratio, self.side**2)
        mask = self._mask(counts, c.smallest_block, views[0])
        with torch.no_grad():
            logits, patches = self._teach(views, need=mask)  # patches: (M, D)
            target = sinkhorn(logits.flatten(0, 1), t, c.iterations).view_as(logits)
            patch_target = sinkhorn(self._teach_patches(patches), t, c.iterations)  # (M, K)
        features, student, masked = self._learn(views, mask, step)
        mask = mask.to(masked.device, non_blocking=True)
        whole = loss.dino(student, target, c.student_temperature)
        patch = ibot(masked, patch_target, mask, c.student_temperature)
        first, second = features.chunk(2)  # (2B, D) -> 2 x (B, D)
        apart = koleo(first) + koleo(second)
        spread = loss.entropy(target)
        return whole + c.patch_weight * patch + c.koleo_weight * apart, {
            "entropy": spread,
            "kl": whole.detach() - spread,
            "patch": patch.detach(),
            "koleo": apart.detach(),
            "masked": mask.float().mean(),
            "temperature": t,
            "chance": self._chance(mask) + c.koleo_weight * apart.detach(),
        }
