"""What to start from: one small function per choice, each with its reason and source.

``RULE`` in a source marks a rule of thumb: plausible, not proven by the work it leans on. The
rest is what the cited work reports or uses. None replaces a sweep on one's own data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..methods import _temperature
from ._facts import (
    CONTRASTIVE,
    CPU_HOURS,
    LARGE,
    MOST_EPOCHS,
    MUCH,
    MULTI_CROP,
    RATE,
    RULE,
    SEEN,
    SMALL,
    TAIL,
    TINY_VIT,
    TRANSFORMERS,
    VIEWS,
    Advice,
    Facts,
)


def backbone(f: Facts, method: str) -> Advice:
    """A timm name; :func:`backbone_args` has its arguments."""
    if not f.gpu_hours:
        if method == "vicregl":
            reason = "patches of 8 px keep an 8 x 8 map of a 64 px image; a ResNet leaves 2 x 2"
            return Advice("vit_tiny_patch16_224", reason, RULE)
        return Advice(
            "resnet10t",
            "after minutes on a CPU it is ahead of a small ViT",
            "measured here, LOG.md",
        )
    if method in TRANSFORMERS:
        big = f.images >= LARGE and f.gpu_hours >= MUCH
        reason = "the method masks or crops tokens" if method != "dino" else "DINO's own backbone"
        size = "base" if big else "small"
        return Advice(f"vit_{size}_patch16_224", f"{reason}; the size by data and compute", RULE)
    size = "50" if f.images >= SMALL else "18"
    return Advice(f"resnet{size}", "convolutions need less data than a ViT from scratch", RULE)


def backbone_args(name: str) -> dict[str, Any]:
    """Arguments of timm.create_model."""
    return TINY_VIT if name == "vit_tiny_patch16_224" else {}


def image_size(f: Facts, method: str) -> Advice:
    """Side of stored and embedded images; the global crop has it too but for small CNNs."""
    if not f.gpu_hours:
        return Advice(64, "what two cores can train on", "measured here, LOG.md")
    return Advice(224, "usual on a GPU; less where the originals are smaller", RULE)


def temperature(f: Facts, method: str) -> Advice:
    """{start, low, high}; a start may be a schedule. None where the loss has none."""
    if method in CONTRASTIVE:
        return _contrastive_temperature(f, method)
    if method == "pmsn":
        value = {"start": 0.1, "low": 0.05, "high": 0.2}
        return Advice(
            value, "of the anchors; targets are sharpened by 0.25 on top", "arXiv 2204.07141"
        )
    if method in MULTI_CROP:
        value = {"start": 0.04, "low": 0.04, "high": 0.07}
        reason = "the teacher's; above 0.07 targets may become uniform. The student's stays at 0.1"
        return Advice(value, reason, "arXiv 2104.14294")
    return Advice(None, "the loss has no temperature", "by its formula")


def _contrastive_temperature(f: Facts, method: str) -> Advice:
    if method != "simclr":
        value: dict[str, Any] = {"start": 0.1, "low": 0.05, "high": 0.3}
        reason = "labels leave no false negatives, so the number of classes does not matter here"
        return Advice(value, reason, f"{RULE}, after arXiv 2004.11362")
    if f.tail >= TAIL:
        swing = {"kind": "cosine", "start": 1.0, "end": 0.1}
        value = {"start": swing, "low": 0.1, "high": 1.0}
        reason = "high favours groups, which helps the tail, low single images; it swings between"
        return Advice(value, reason, f"{RULE}, after arXiv 2303.13664 (its range from memory)")
    if f.classes < 2:
        value = {"start": 0.2, "low": 0.1, "high": 0.5}
        reason = "classes unknown: the middle of the usual range"
        return Advice(value, reason, f"{RULE}, after arXiv 2002.05709")
    start = round(_temperature.by_classes(f.classes, 0.1, 0.5), 3)
    value = {"start": start, "low": round(start / 2, 3), "high": min(1.0, 2 * start)}
    reason = (
        f"with {f.classes} equal classes {100 / f.classes:.2g} % of an anchor's negatives share "
        "its class; a low temperature pushes the nearest of them away hardest"
    )
    return Advice(value, reason, f"{RULE}, after arXiv 2012.09740")


def crop(f: Facts, method: str) -> Advice:
    """Share of the image's area of the global views."""
    usual, source = _usual_crop(f, method)
    least = next(at for limit, at in SMALL_OBJECTS if f.object_scale < limit)
    low = max(usual, least)
    both = ((low + 1) / 2) ** 2
    reason = f"two such views both show a given point in about {both:.0%} of cases"
    if low > usual:
        share = f"{f.object_scale:.0%}"
        reason += f"; smaller ones ({usual} is usual) often lose an object of {share} of the image"
        source = RULE
    return Advice((low, 1.0), reason, source)


SMALL_OBJECTS = ((0.1, 0.5), (0.3, 0.4), (math.inf, 0.0))  # below this share: least crop


def _usual_crop(f: Facts, method: str) -> tuple[float, str]:
    if method in MULTI_CROP:
        return 0.32, "arXiv 2304.07193 (default of its code)"
    if method == "vicregl":
        return 0.4, "arXiv 2210.01571"
    if method == "mae" or f.images < LARGE:
        return 0.2, "arXiv 2111.06377" if method == "mae" else f"{RULE}; ImageNet: 0.08"
    return 0.08, "arXiv 2002.05709"


def local_crop(f: Facts, method: str) -> Advice:
    """Share of the image's area of the small views; None without them."""
    if method not in MULTI_CROP:
        return Advice(None, "two views, or one, and no small ones", "by the method")
    split = crop(f, method).value[0]
    if split > 0.32:
        return Advice((0.15, split), "smaller ones would show background only", RULE)
    reason = "parts of the object, to be matched with the whole; meets the global scale"
    return Advice((0.05, split), reason, "arXiv 2304.07193 (default of its code)")


def batch_size(f: Facts, method: str) -> Advice:
    """A power of two, at most an eighth of the images."""
    want = 256
    if f.gpu_hours and method in (*CONTRASTIVE, "mae"):
        want = 1024 if f.images >= LARGE else 512
    fits = 2 ** int(math.log2(f.images / 8))
    reason = "as many negatives as memory allows" if method in CONTRASTIVE else "as memory allows"
    if method in CONTRASTIVE and not f.gpu_hours:
        want, reason = 128, "more steps beat larger batches in short runs (LOG.md)"
    if fits < want:
        reason = "an eighth of the images, so that an epoch has steps"
    return Advice(min(want, fits), reason, RULE)


def epochs(f: Facts, method: str) -> Advice:
    """What the data want, cut to what the compute allows."""
    wanted = min(MOST_EPOCHS, max(10.0, SEEN / f.images))
    hours = f.gpu_hours or CPU_HOURS
    rate = RATE[backbone(f, method).value] / VIEWS.get(method, 2.0)
    allowed = hours * 3600 * rate / f.images
    means = f"{f.gpu_hours:g} GPU-hours" if f.gpu_hours else f"{CPU_HOURS:g} hour on two cores"
    if allowed < wanted:
        reason = f"{means} allow about this much; the data would bear {wanted:.3g}"
        return Advice(float(f"{allowed:.2g}"), reason, f"{RULE}; throughput is an estimate")
    reason = "small sets bear many epochs, large ones need few"
    return Advice(float(f"{wanted:.3g}"), reason, RULE)


def recipe(f: Facts, method: str) -> Advice:
    """Which options to start from."""
    if f.images >= LARGE and f.gpu_hours:
        return Advice(
            "paper", "data of ImageNet's size: the published options", "the method's paper"
        )
    return Advice("small", "less data than the papers had: smaller heads, fewer views", RULE)


def sam(f: Facts, method: str) -> Advice:
    """{radius, alpha} of rwSAM, or None."""
    if method == "simclr" and f.tail >= TAIL and f.gpu_hours:
        reason = "flatter minima for rare images, at twice the cost; sweep 0.05, 0.1, 0.5, 2"
        value = {"radius": 0.1, "alpha": 1.0}
        return Advice(value, reason, f"{RULE}, after arXiv 2110.05025 (its values from memory)")
    return Advice(None, "at twice the cost it is for SimCLR on long tails, with a GPU", RULE)


RULES: dict[str, Callable[[Facts, str], Advice]] = {
    "backbone": backbone,
    "image_size": image_size,
    "recipe": recipe,
    "temperature": temperature,
    "crop_scale": crop,
    "local_crop_scale": local_crop,
    "batch_size": batch_size,
    "epochs": epochs,
    "sam": sam,
}
