"""Where the object is, as a box: CorLoc, the share of boxes with an IoU of at least one half.

The found box surrounds the largest connected part of the discovered mask (as LOST, arXiv
2109.14279), the true one all objects of the mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import Analyse
from . import _discover, _masks, _pictures
from ._subject import Finding, Rows, Subject

ENOUGH = 0.5


def largest(mask: _masks.Mask) -> _masks.Mask:
    """The largest part of a mask (H, W) that hangs together by edges or corners."""
    from scipy import ndimage

    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    return np.asarray(parts == 1 + sizes.argmax(), np.bool_)


def overlaps(found: _masks.Mask, truth: _masks.Mask) -> NDArray[np.float64]:
    """IoU of the boxes around found and true masks (B, S, S): (B,).

    0 where nothing was found, NaN where nothing is there.
    """
    out = np.full(len(found), np.nan)
    for i, (mine, true) in enumerate(zip(found, truth, strict=True)):
        want, box = _masks.box(true), _masks.box(largest(mine))
        if want is not None:
            out[i] = _masks.box_iou(box, want) if box is not None else 0.0
    return out


def _frame(image: _pictures.Pixels, box: _masks.Box | None, colour: tuple[int, int, int]) -> None:
    """Draw a box into an image."""
    if box is not None:
        top, left, bottom, right = box
        image[[top, bottom - 1], left:right] = colour
        image[top:bottom, [left, right - 1]] = colour


def _pictured(
    subject: Subject, chosen: Rows, masks: dict[str, _masks.Mask], truth: _masks.Mask
) -> dict[str, bytes]:
    """Images with the true box in orange and the found one in blue-green, by way of finding."""
    some = chosen[: _pictures.SAMPLES]
    rows = []
    for found in masks.values():
        images = _pictures.thumbnails(subject, some)
        for image, mask, true in zip(images, found, truth, strict=False):
            _frame(image, _masks.box(true), _pictures.TRUE)
            _frame(image, _masks.box(largest(mask)), _pictures.FOUND)
        rows.append(images)
    return {"localisation": _pictures.sheet(rows)}


def run(subject: Subject, cfg: Analyse) -> Finding:
    """CorLoc and mean IoU of boxes around discovered objects."""
    chosen = _masks.rows(subject, cfg.images)
    if not len(chosen):
        return Finding(missing=_masks.NONE)
    side = subject.source.side
    masks = _discover.pixels(_discover.find(subject, chosen), side)
    truth = _masks.objects(_masks.true(subject, chosen))
    rows = []
    for name, found in (masks | _discover.baselines(side, len(chosen))).items():
        overlap = overlaps(found, truth)
        right = np.where(np.isnan(overlap), np.nan, overlap >= ENOUGH)
        rows.append(subject.average(f"corloc_{name}", right, chosen))
        rows.append(subject.average(f"box_iou_{name}", overlap, chosen))
    return Finding(rows, _pictured(subject, chosen, masks, truth))
