"""Linear segmentation: what a linear map of each patch tells of the pixels under it.

Patch map -> batch norm -> 1 x 1 convolution -> bilinear to the image's size -> cross-entropy, as
DINOv2's linear evaluation (arXiv 2304.07193). mIoU is that of the summed confusion matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Analyse
from ..evaluate import _common
from . import _masks, _pictures, _tokens
from ._subject import DRAWS, NOT_JUDGED, Finding, Row, Rows, Subject, row

STEPS, BATCH, LR, DECAY = 240, 32, 1e-2, 1e-4
LEAST = 16  # training images with masks
Matrix = NDArray[np.int64]
Shares = NDArray[np.float64]


class Probe(nn.Module):
    """Batch norm without weights of its own, and a 1 x 1 convolution."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.classifier = nn.Conv2d(width, classes, 1)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, side: int) -> Tensor:
        """(B, h, w, D) -> logits (B, C, side, side)."""
        logits = self.classifier(
            self.norm(maps.permute(0, 3, 1, 2))
        )  # (B, h, w, D) -> (B, C, h, w)
        return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)


def fit(maps: Tensor, target: Tensor, classes: int, seed: int) -> Probe:
    """A probe for maps (N, h, w, D) and class numbers (N, S, S), 255 where not judged."""
    net = Probe(maps.shape[-1], classes).train()
    net.norm.momentum = None  # plain mean of the batches
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        drawn = torch.randperm(len(maps), generator=generator)[:BATCH]
        logits = net(maps[drawn], target.shape[-1])
        loss = F.cross_entropy(logits, target[drawn], ignore_index=NOT_JUDGED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def predict(net: Probe, maps: Tensor, side: int) -> NDArray[np.int64]:
    """Class numbers (N, side, side)."""
    parts = [net(maps[i : i + BATCH], side).argmax(1) for i in range(0, len(maps), BATCH)]
    return torch.cat(parts).numpy()


def confusion(truth: NDArray[np.integer], found: NDArray[np.integer], classes: int) -> Matrix:
    """Pixels by true (rows) and found class: (classes, classes). 255 in ``truth`` is left out."""
    judged = truth != NOT_JUDGED
    code = truth[judged].astype(np.int64) * classes + found[judged]
    return np.bincount(code, minlength=classes**2).reshape(classes, classes)


def ious(matrix: NDArray[np.number]) -> Shares:
    """Jaccard index by class, (..., C, C) -> (..., C); NaN where a class is absent from both."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    union = matrix.sum(-1) + matrix.sum(-2) - hit
    found: Shares = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    return found


def miou(matrix: NDArray[np.number]) -> Shares:
    """Mean over the classes that the truth holds: (..., C, C) -> (...)."""
    own = np.where(matrix.sum(-1) > 0, ious(matrix), np.nan)
    found: Shares = np.asarray(np.nanmean(own, axis=-1))
    return found


@dataclass(frozen=True)
class Judged:
    """Test images, the true and found classes of their pixels, and each one's confusion matrix."""

    rows: Rows
    truth: NDArray[np.int64]  # (N, S, S), class numbers from 0
    found: NDArray[np.int64]
    each: Matrix  # (N, C, C)
    names: tuple[int, ...]  # the masks' values
    layer: str


def _numbered(masks: _masks.Classes, names: tuple[int, ...]) -> NDArray[np.int64]:
    """Values of masks -> class numbers; values that training lacks are not judged."""
    table = np.full(256, NOT_JUDGED, np.int64)
    table[list(names)] = np.arange(len(names))
    found: NDArray[np.int64] = table[masks]
    return found


def judge(subject: Subject, train: Rows, test: Rows) -> Judged:
    """Fit on training images and name every pixel of the test images."""
    layer, maps = _tokens.maps(subject, train)
    known = _masks.true(subject, train)
    names = tuple(int(v) for v in np.unique(known) if v != NOT_JUDGED)
    target = torch.from_numpy(_numbered(known, names))
    net = fit(maps, target, len(names), subject.seed)
    truth = _numbered(_masks.true(subject, test), names)
    found = predict(net, _tokens.maps(subject, test)[1], subject.source.side)
    pairs = zip(truth, found, strict=True)
    each = np.stack([confusion(t, f, len(names)) for t, f in pairs])
    return Judged(test, truth, found, each, names, layer)


def _rows(subject: Subject, judged: Judged) -> list[Row]:
    n, c = len(judged.rows), len(judged.names)
    _, code = np.unique(subject.rows.groups[judged.rows], return_inverse=True)
    groups = np.zeros((code.max() + 1, c * c))
    np.add.at(groups, code, judged.each.reshape(n, -1))
    drawn = _common.resample(groups, DRAWS, _common.SEED).reshape(-1, c, c)
    whole = judged.each.sum(0)
    guess = np.zeros_like(whole)  # everything is of the commonest class
    guess[:, whole.sum(1).argmax()] = whole.sum(1)
    rows = [
        row("miou", float(miou(whole)), n, "all", _common.spread(miou(drawn))),
        row("pixel_accuracy", float(np.trace(whole) / whole.sum()), n),
        row("miou_of_commonest_class", float(miou(guess)), n),
    ]
    own, spread = ious(whole), ious(drawn)
    for number, name in enumerate(judged.names):
        interval = _common.spread(spread[:, number])
        rows.append(row("iou", float(own[number]), n, f"class:{name}", interval))
    return rows


def _pictured(subject: Subject, judged: Judged) -> dict[str, bytes]:
    """Images, true and found classes in colour."""
    some = slice(_pictures.SAMPLES)
    images = _pictures.thumbnails(subject, judged.rows[some])
    shown = [[_pictures.classes(m) for m in x[some]] for x in (judged.truth, judged.found)]
    return {"segmentation": _pictures.sheet([images, *shown])}


def run(subject: Subject, cfg: Analyse) -> Finding:
    """mIoU of a linear probe on frozen patches, on test images with true masks."""
    train, test = (_masks.rows(subject, cfg.images, split) for split in ("train", "test"))
    if subject.masks is None or not len(test):
        return Finding(missing=_masks.NONE)
    if len(train) < LEAST:
        return Finding(missing=f"{len(train)} training images have masks, {LEAST} are needed")
    judged = judge(subject, train, test)
    return Finding(_rows(subject, judged), _pictured(subject, judged))
