"""lightly's training loops as its scripts write them (examples/pytorch/{simclr,dino,mae}.py).

Rewritten from the public interface of lightly 1.6: one pass per view through the backbone,
one loss module, ``torch.optim.AdamW(model.parameters())`` not fused, ``update_momentum``. Only
the sizes are ours, so that both sides train the same model; views come as ready tensors.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

Views = list[Tensor]
LR, DECAY = 1e-4, 0.05  # of AdamW, on both sides


def backbone(name: str, **args: Any) -> nn.Module:
    """A timm ViT without classifier that takes any input size."""
    import timm

    model: nn.Module = timm.create_model(name, num_classes=0, dynamic_img_size=True, **args)
    return model


class SimCLR(nn.Module):
    """Per-view forward, NT-Xent."""

    def __init__(self, name: str, hidden: int, out: int) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.backbone = backbone(name)
        width = self.backbone.num_features
        self.projection_head = SimCLRProjectionHead(width, hidden, out)
        self.criterion = NTXentLoss()

    def forward(self, views: Views) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(v).flatten(start_dim=1)) for v in views)
        loss: Tensor = self.criterion(z0, z1)
        return loss

    def after(self) -> None:
        """No teacher."""


class DINO(nn.Module):
    """Per-view forward of student and teacher, a momentum teacher, centring."""

    def __init__(self, name: str, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.student_backbone = backbone(name)
        width = self.student_backbone.num_features
        sizes = (width, hidden, bottleneck, prototypes)
        with warnings.catch_warnings():  # torch.nn.utils.weight_norm is deprecated
            warnings.simplefilter("ignore")
            self.student_head = DINOProjectionHead(*sizes, freeze_last_layer=1)
            self.teacher_head = DINOProjectionHead(*sizes)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=prototypes, warmup_teacher_temp_epochs=5)
        self.epoch = 1  # the last layer is frozen in epoch 0 only

    def forward(self, views: Views) -> Tensor:
        teacher = [self.teacher_head(self.teacher_backbone(v).flatten(1)) for v in views[:2]]
        student = [self.student_head(self.student_backbone(v).flatten(1)) for v in views]
        loss: Tensor = self.criterion(teacher, student, epoch=self.epoch)
        return loss

    def before_update(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=self.epoch)

    def after(self) -> None:
        """Move the teacher."""
        from lightly.models.utils import update_momentum

        update_momentum(self.student_backbone, self.teacher_backbone, m=0.996)
        update_momentum(self.student_head, self.teacher_head, m=0.996)


class MAE(nn.Module):
    """Encoder on the kept tokens, decoder on all, pixels of the hidden ones."""

    def __init__(self, name: str, dim: int, depth: int, heads: int, ratio: float = 0.75) -> None:
        super().__init__()
        import timm
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        vit: Any = timm.create_model(name, num_classes=0)
        self.ratio, self.patch_size = ratio, vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        with warnings.catch_warnings():  # its successor does the same work
            warnings.simplefilter("ignore")
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                patch_size=self.patch_size,
                embed_dim=vit.embed_dim,
                decoder_embed_dim=dim,
                decoder_depth=depth,
                decoder_num_heads=heads,
            )
        self.criterion = nn.MSELoss()

    def forward(self, views: Views) -> Tensor:
        from lightly.models import utils

        images, batch = views[0], len(views[0])
        keep, mask = utils.random_token_mask(
            size=(batch, self.sequence_length), mask_ratio=self.ratio, device=images.device
        )
        encoded = self.backbone.encode(images=images, idx_keep=keep)
        embedded = self.decoder.embed(encoded)
        masked = utils.repeat_token(self.decoder.mask_token, (batch, self.sequence_length))
        masked = utils.set_at_index(masked, keep, embedded.type_as(masked))
        decoded = self.decoder.decode(masked)
        predicted = self.decoder.predict(utils.get_at_index(decoded, mask))
        patches = utils.patchify(images, self.patch_size)
        target = utils.get_at_index(patches, mask - 1)  # masks count the class token
        loss: Tensor = self.criterion(predicted, target)
        return loss

    def after(self) -> None:
        """No teacher."""


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """As the examples make it, with torch's own choice of loop over parameters."""
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)


def step(model: Any, optim: torch.optim.Optimizer, views: Views, bf16: bool) -> Tensor:
    """One pass of the inner loop; returns the detached loss, as the loop sums it."""
    with torch.autocast(views[0].device.type, torch.bfloat16, enabled=bf16):
        loss: Tensor = model(views)
    loss.backward()
    if hasattr(model, "before_update"):
        model.before_update()
    optim.step()
    optim.zero_grad()
    model.after()
    return loss.detach()
