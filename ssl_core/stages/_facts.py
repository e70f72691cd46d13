"""What the rules of `headwater recommend` go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

RULE = "rule of thumb"
SMALL, LARGE = 50_000, 1_000_000  # images
MUCH = 500.0  # GPU-hours from which large models and DINOv2 pay
TAIL = 10.0  # largest class over smallest from which a tail is long
LABELLED = 0.5  # share of images with labels from which these should steer pretraining
CPU_HOURS = 1.0  # what "cpu" stands for
SEEN, MOST_EPOCHS = 3e8, 800.0  # images seen in all: 234 epochs of ImageNet-1k
CONTRASTIVE = ("simclr", "supcon", "supcon_ce")
MULTI_CROP = ("dino", "dinov2", "ibot", "pmsn")
TRANSFORMERS = (*MULTI_CROP, "mae")

# Views per second, forward and backward. ResNet-10t: measured at 32 px on two cores (LOG.md); the
# tiny ViT: scaled from a narrower one measured there. A GPU's are assumed orders of magnitude, for
# one card of a data centre at 224 px.
RATE = {
    "resnet10t": 435.0,
    "vit_tiny_patch16_224": 90.0,
    "resnet18": 3000.0,
    "resnet50": 1000.0,
    "vit_small_patch16_224": 1000.0,
    "vit_base_patch16_224": 400.0,
}
VIEWS = {"mae": 0.5, "dino": 5.0, "dinov2": 6.0, "ibot": 6.0, "pmsn": 3.0}  # others: 2
TINY_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}


@dataclass(frozen=True)
class Facts:
    """What is known of data, goal and means. ``tail``: largest class over smallest."""

    images: int
    classes: int = 0  # 0: unknown
    tail: float = 1.0
    object_scale: float = 0.5  # share of the image's area that the object takes
    task: Literal["classification", "dense"] = "classification"
    gpu_hours: float = 0.0  # 0: CPU only
    labels: float = 0.0  # share of images with a label

    @property
    def labelled(self) -> bool:
        """Labels are plentiful and are what the encoder is for."""
        return self.classes > 1 and self.labels >= LABELLED and self.task == "classification"

    @property
    def modest(self) -> bool:
        """Too little data or compute for a ViT from scratch."""
        return self.images < SMALL or not self.gpu_hours


@dataclass(frozen=True)
class Advice:
    """A value, why, and who says so."""

    value: Any
    reason: str
    source: str
