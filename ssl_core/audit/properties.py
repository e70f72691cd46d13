"""Simple properties of images that should say nothing about what they show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..harm import _quality
from ..types import Labels

Pixels = NDArray[np.uint8]
NONE = "(none)"
OTHER = "(other)"
BINS, VALUES = 8, 15  # of a number, of a text
FRAME, CORNER = 0.06, 0.1  # widths, shares of the shorter side
LEAST = 0.005  # share of the images that a value needs to count by itself
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
EDGES = np.array([15, 40, 70, 165, 200, 260, 290, 345])  # degrees at which the next one begins
IMAGE = (
    *_quality.MEASURES,
    "border_spread",
    "border_colour",
    "corner_top_left",
    "corner_top_right",
    "corner_bottom_left",
    "corner_bottom_right",
)


@dataclass(frozen=True)
class Property:
    """One column as codes (N,) into ``names``; ``kind`` is metadata or image."""

    name: str
    kind: str
    code: Labels
    names: tuple[str, ...]

    def rows(self, mask: NDArray[np.bool_]) -> Property:
        """The same column of fewer images."""
        return replace(self, code=self.code[mask])


def colour(rgb: NDArray[np.float64]) -> str:
    """The name of a colour (3,) of 0..255."""
    high, low = float(rgb.max()), float(rgb.min())
    if high < 50:
        return "black"
    if high - low < 0.18 * high:
        return "white" if high > 190 else "light grey" if high > 130 else "dark grey"
    r, g, b = (float(v) for v in rgb)
    span = high - low
    turn = {r: (g - b) / span, g: 2 + (b - r) / span, b: 4 + (r - g) / span}[high]
    name = HUES[int(np.searchsorted(EDGES, (60 * turn) % 360, side="right")) % len(HUES)]
    return name if high > 110 else f"dark {name}"


def measure(image: Pixels) -> tuple[float | str, ...]:
    """``IMAGE`` of one picture (H, W, 3), of any size."""
    height, width = image.shape[:2]
    edge, side = (max(1, round(share * min(height, width))) for share in (FRAME, CORNER))
    inner = np.zeros((height, width), np.bool_)
    inner[edge : height - edge, edge : width - edge] = True
    frame = image[~inner].astype(np.float64)  # (pixels, 3)
    corners = (
        image[:side, :side],
        image[:side, -side:],
        image[-side:, :side],
        image[-side:, -side:],
    )
    return (
        *_quality.measure(image),
        float(frame.std(axis=0).mean()),
        colour(frame.mean(axis=0)),
        *(colour(c.reshape(-1, 3).astype(np.float64).mean(axis=0)) for c in corners),
    )


def image_table(pictures: Iterable[Pixels]) -> pd.DataFrame:
    """(N, 10): columns ``IMAGE``."""
    return pd.DataFrame([measure(p) for p in pictures], columns=list(IMAGE))


def metadata_table(manifest: pd.DataFrame) -> pd.DataFrame:
    """What is known of each image without looking at it, of rows of the manifest."""
    when = manifest["captured_at"].astype("str")
    day = pd.to_datetime(when.str.slice(0, 10), errors="coerce")
    short = np.minimum(manifest["width"], manifest["height"])
    return pd.DataFrame(
        {
            "source": manifest["source"],
            "captured_month": day.dt.strftime("%Y-%m"),
            "captured_weekday": day.dt.day_name(),
            "captured_hour": when.str.extract(r"[T ](\d{2}):")[0],
            "size": manifest["width"].astype(str) + " x " + manifest["height"].astype(str),
            "shorter_side": short.astype(float),
            "aspect_ratio": manifest["width"] / manifest["height"],
            "format": manifest["format"],
            "mode": manifest["mode"],
            "file_bytes": manifest["bytes"].astype(float),
        }
    )


CONTENT = (*IMAGE, "aspect_ratio", "file_bytes")  # what an image shows may move these by right


def _numbers(values: NDArray[np.float64]) -> tuple[Labels, list[str]]:
    """Codes by quantiles; equal values are never parted."""
    known = values[np.isfinite(values)]
    cuts = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else known
    code = np.searchsorted(cuts, values, side="right").astype(np.int64)
    code[~np.isfinite(values)] = len(cuts) + 1
    edges = [f"{c:.4g}" for c in cuts]
    inner = [f"{a} to {b}" for a, b in pairwise(edges)]
    ends = [f"below {edges[0]}", *inner, f"{edges[-1]} or more"] if edges else ["any"]
    return code, [*ends, NONE]


def _texts(values: pd.Series) -> tuple[Labels, list[str]]:
    """Codes of the commonest values; the rest is one."""
    text = values.astype("str").fillna(NONE)
    count = text.value_counts()
    common = count[count >= max(2, LEAST * len(text))].sort_index().nlargest(VALUES, keep="first")
    names = sorted(common.index.tolist())
    place = {name: i for i, name in enumerate(names)}
    code = text.map(place).fillna(len(names)).to_numpy(np.int64)
    return code, [*names, OTHER]


def prepare(table: pd.DataFrame) -> list[Property]:
    """Columns with at least two values, as codes."""
    found = []
    for name in table.columns:
        column = table[name]
        number = pd.api.types.is_float_dtype(column)
        code, names = _numbers(column.to_numpy(np.float64)) if number else _texts(column)
        used = np.unique(code)
        if len(used) > 1:
            kind = "image" if name in CONTENT else "metadata"
            packed = np.searchsorted(used, code)
            found.append(Property(str(name), kind, packed, tuple(names[i] for i in used)))
    return found
