"""Unsupervised object discovery against true masks: mean Jaccard index per image.

Beside the encoder's ways stand two that do not look (``everything``, ``disc``) and the ceiling
``grid``: the best that whole patches can do.
"""

from __future__ import annotations

import numpy as np

from ..config import Analyse
from . import _discover, _masks, _pictures
from ._subject import Finding, Row, Rows, Subject


def ceiling(masks: _masks.Classes, grid: tuple[int, int]) -> _masks.Mask:
    """Cells of which objects cover half or more, at the image's size: (B, S, S)."""
    side = masks.shape[-1]
    cells = _masks.shares(_masks.objects(masks), grid) >= 0.5
    return _masks.enlarged(cells, side).astype(np.bool_)


def _rows(subject: Subject, chosen: Rows, found: _discover.Found) -> list[Row]:
    side, masks = subject.source.side, _masks.true(subject, chosen)
    grid = found.colours.shape[1:3]
    every = _discover.pixels(found, side) | _discover.baselines(side, len(chosen))
    every["grid"] = ceiling(masks, (grid[0], grid[1]))
    return [
        subject.average(f"iou_{name}", _masks.iou(mask, masks), chosen)
        for name, mask in every.items()
    ]


def _pictured(subject: Subject, chosen: Rows, found: _discover.Found) -> dict[str, bytes]:
    """Images, the true mask where there is one, main components as colours, and what was found."""
    some = chosen[: _pictures.SAMPLES]
    images = _pictures.thumbnails(subject, some)
    colours = _pictures.components(found.colours[: len(some)])
    rows = [images]
    if subject.masks is not None and np.isin(some, subject.masks.rows()).all():
        masks = _masks.objects(_masks.true(subject, some))
        rows.append(
            [_pictures.tinted(i, m, _pictures.TRUE) for i, m in zip(images, masks, strict=True)]
        )
    rows.append(list(colours.repeat(4, 1).repeat(4, 2)))  # sharp edges when enlarged
    for mask in found.masks.values():
        rows.append([_pictures.tinted(i, m) for i, m in zip(images, mask, strict=False)])
    return {"discovery": _pictures.sheet(rows)}


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Jaccard index of objects found by attention and by the patches' main component."""
    chosen = _masks.rows(subject, cfg.images)
    masked = len(chosen) > 0
    if not masked:
        chosen = subject.draw(cfg.images)
    found = _discover.find(subject, chosen)
    pictures = _pictured(subject, chosen, found)
    if not masked:
        return Finding(pictures=pictures, missing=_masks.NONE)
    return Finding(_rows(subject, chosen, found), pictures)
