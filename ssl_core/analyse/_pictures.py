"""The kinds of picture that analyses share, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .. import bands
from ..report import _figures, _images, _theme
from ._subject import Rows, Subject

Pixels = NDArray[np.uint8]
SHADES = "viridis"
SAMPLES = 8
COLOURS = 64  # of a picture's palette: a third of the bytes
TRUE, FOUND = (217, 104, 60), (14, 124, 134)  # colours of true and found places
_NO_CLASS = 255


def _small(png: bytes) -> bytes:
    """The same picture in few colours."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(out, "PNG", optimize=True)
    return out.getvalue()


def heat(
    values: ArrayLike,
    title: str,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    digits: int = 2,
) -> bytes:
    """A matrix (R, C) as shades with its numbers; ``rows`` and ``columns``: name and ticks."""
    matrix = np.asarray(values, np.float64)
    width = max(3.6, 1.6 + 0.52 * matrix.shape[1], 1.2 + 0.075 * len(title))
    size = (width, max(2.2, 1.1 + 0.3 * matrix.shape[0]))
    with _theme.styled():
        figure, [[axis]] = _figures._figure(*size)
        shown = axis.imshow(matrix, cmap=SHADES, aspect="auto")
        axis.set_xticks(range(matrix.shape[1]), [_theme.short(c, 16) for c in columns[1]])
        axis.set_yticks(range(matrix.shape[0]), [_theme.short(r, 20) for r in rows[1]])
        axis.set(title=title, xlabel=columns[0], ylabel=rows[0])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        middle = float(np.nanmean(shown.get_clim()))
        for (r, c), value in np.ndenumerate(matrix):
            ink = "black" if value > middle else "white"
            axis.text(c, r, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=7)
    return _small(_theme.png(figure))


# x, y; and optionally the ends of y's intervals.
Line = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]


def lines(
    panels: Mapping[str, Mapping[str, Line]],
    xlabels: Sequence[str],
    levels: Mapping[str, float] | None = None,
) -> bytes:
    """Panels by title, each of lines by name; ``levels``: a dashed level in a panel."""
    with _theme.styled():
        figure, axes = _figures._figure(4.6 * len(panels), 3.0, 1, len(panels))
        for axis, (title, series), xlabel in zip(axes.flat, panels.items(), xlabels, strict=True):
            for hue, (name, (x, y, *ends)) in zip(_theme.HUES * 3, series.items(), strict=False):
                axis.plot(x, np.asarray(y, float), color=hue, marker="o", ms=3, label=name)
                if ends:
                    axis.fill_between(x, *ends, color=hue, alpha=0.15, linewidth=0)
            if levels and title in levels:
                axis.axhline(levels[title], color=_theme.MUTED, linestyle="--", linewidth=1)
            axis.set_title(title)
            axis.set_xlabel(xlabel)
            if len(series) > 1:
                axis.legend(fontsize=7, ncols=1 + (len(series) > 6))
    return _small(_theme.png(figure))


def bars(groups: Mapping[str, Mapping[str, float]], title: str, ylabel: str) -> bytes:
    """Bars side by side: ``groups`` along the axis, in each the same names."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / max(len(names), 1)
    with _theme.styled():
        figure, [[axis]] = _figures._figure(max(4.6, 1.0 + 0.75 * len(groups)), 3.0)
        for i, (hue, name) in enumerate(zip(_theme.HUES * 3, names, strict=False)):
            values = [group.get(name, np.nan) for group in groups.values()]
            axis.bar(np.arange(len(groups)) + i * width, values, width, color=hue, label=name)
        middle = np.arange(len(groups)) + width * (len(names) - 1) / 2
        axis.set_xticks(middle, [_theme.short(g, 20) for g in groups], rotation=25, ha="right")
        axis.set(title=title, ylabel=ylabel)
        axis.legend(fontsize=7)
    return _small(_theme.png(figure))


def sheet(rows: Sequence[Sequence[Pixels]]) -> bytes:
    """Images (H, W, 3) in a grid, in few colours."""
    return _small(_images.sheet(rows, [[None] * len(r) for r in rows]))


def thumbnails(subject: Subject, rows: Rows) -> list[Pixels]:
    """Images of rows, (S, S, 3) each."""
    return [rgb(image) for image in subject.source.take(rows)]


def rgb(image: torch.Tensor) -> Pixels:
    """uint8 (C, H, W) -> (H, W, 3)."""
    return np.ascontiguousarray(bands.to_rgb(image.permute(1, 2, 0).cpu().numpy()))


def overlay(image: Pixels, weights: ArrayLike) -> Pixels:
    """A map (h, w) over an image (H, W, 3): what weighs little is darkened and grey."""
    values = np.asarray(weights, np.float32)
    span = values.max() - values.min()
    share = (values - values.min()) / (span if span > 0 else 1)
    shape = image.shape[1::-1]
    veil = np.asarray(Image.fromarray(share).resize(shape, Image.Resampling.BILINEAR))[..., None]
    grey = image.mean(axis=2, keepdims=True) * 0.35
    mixed = image * veil + grey * (1 - veil)
    found: Pixels = np.clip(mixed, 0, 255).astype(np.uint8)
    return found


def tinted(image: Pixels, mask: ArrayLike, colour: tuple[int, int, int] = FOUND) -> Pixels:
    """An image (H, W, 3) with the places of a mask (h, w) in colour."""
    small = Image.fromarray(np.asarray(mask, np.uint8) * 255)
    inside = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.NEAREST)) > 127
    out = image.copy()
    out[inside] = (0.45 * image[inside] + 0.55 * np.asarray(colour)).astype(np.uint8)
    return out


def classes(numbers: ArrayLike) -> Pixels:
    """Class numbers (H, W), 255 for none -> colours (H, W, 3); class 0 is pale."""
    table = np.full((256, 3), 150, np.uint8)
    hues = [tuple(bytes.fromhex(h[1:])) for h in (_theme.GRID, *_theme.HUES)]
    for number in range(_NO_CLASS):
        table[number] = hues[number and 1 + (number - 1) % len(_theme.HUES)]
    found: Pixels = table[np.asarray(numbers, np.int64)]
    return found


def components(values: NDArray[np.floating]) -> Pixels:
    """Three numbers per cell, (B, h, w, 3) -> colours, each number over its own range."""
    low, high = np.quantile(values, [0.02, 0.98], axis=(0, 1, 2))
    span = np.maximum(high - low, 1e-12)
    found: Pixels = (255 * np.clip((values - low) / span, 0, 1)).astype(np.uint8)
    return found
