"""Several encoders beside each other on one offline page: measures, pictures and a map."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ..types import Array, Embeddings
from . import _images, _select, html
from ._figures import project

CONTENTS = (
    ("top", "Encoders"),
    ("measures", "Measures"),
    ("likeness", "Likeness"),
    ("map", "Map"),
    ("retrieval", "Neighbours"),
    ("mistakes", "Mistakes"),
    ("analyses", "Analyses"),
)
POINTS, TILE = 500, 40  # images on the map, and the side of each on its sprite
QUERIES, MISTAKES = 4, 8


@dataclass(frozen=True)
class Seen:
    """What the page needs of one encoder.

    ``train`` and ``test`` are its features; ``predicted`` and ``confidence`` (M,) what its linear
    probe says of ``test``; ``pictures`` PNG by (analysis, name); ``missing`` says why an analysis
    has none.
    """

    name: str
    about: str
    train: Embeddings
    test: Embeddings
    predicted: NDArray[np.str_]
    confidence: Array
    pictures: Mapping[tuple[str, str], bytes]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Likeness:
    """Of pairs of encoders: CKA of their last layers, and a picture of all layers (PNG)."""

    values: Mapping[tuple[str, str], float]
    pictures: Mapping[tuple[str, str], bytes]

    def table(self, names: Sequence[str]) -> list[tuple[str, list[float]]]:
        """Each encoder's name and its likeness to all of ``names``; 1 to itself."""
        both = {**self.values, **{(b, a): v for (a, b), v in self.values.items()}}
        return [(a, [1.0 if a == b else both.get((a, b), np.nan) for b in names]) for a in names]


# ---- measures ----------------------------------------------------------------------------------


def heat(table: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of the heat map: a value on the whole test split for each encoder.

    Shades run from a line's least to its largest value: which end is good depends on the measure.
    """
    whole = table[table["slice"] == "all"]
    lines = []
    for (measure, metric), rows in whole.groupby(["measure", "metric"], sort=False):
        part = rows.set_index("encoder").reindex(list(names))
        reach = part["value"].max() - part["value"].min()
        shades = 45 * ((part["value"] - part["value"].min()) / (reach if reach > 0 else 1)).fillna(
            0
        )
        cells = [
            {"value": value, "spread": _spread(low, high), "shade": round(shade)}
            for value, low, high, shade in zip(
                part["value"], part["low"], part["high"], shades, strict=True
            )
        ]
        lines.append({"measure": measure, "metric": str(metric).replace("_", " "), "cells": cells})
    return lines


def _spread(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"{html.decimal(low)} to {html.decimal(high)}"


# ---- the map -----------------------------------------------------------------------------------


def _drawn(test: Embeddings, seed: int) -> NDArray[np.int64]:
    """Rows of the test split on the map; the same images for every encoder."""
    order = np.argsort(test.sha256)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(order, min(POINTS, len(order)), replace=False))


def _sprite(keys: Sequence[str], store: _images.Shards) -> tuple[str, int]:
    """All thumbnails as one picture, and how many stand in a row of it."""
    columns = max(1, int(np.ceil(np.sqrt(len(keys)))))
    rows = -(-len(keys) // columns)
    sheet = np.full((rows * TILE, columns * TILE, 3), 255, np.uint8)
    for i, key in enumerate(keys):
        y, x = TILE * (i // columns), TILE * (i % columns)
        sheet[y : y + TILE, x : x + TILE] = store.get(key, TILE)
    return str(_images.uri(sheet)), columns


def _places(seen: Seen, keys: NDArray[np.str_], seed: int) -> list[list[float]]:
    """Coordinates in [0, 1], three digits: one picture's width needs no more."""
    rows = pd.Series(np.arange(len(seen.test)), seen.test.sha256).reindex(keys).to_numpy()
    points, _ = project(seen.test.features[rows], seed)
    low, reach = points.min(axis=0), np.ptp(points, axis=0)
    scaled = (points - low) / np.where(reach > 0, reach, 1)
    return [[round(float(x), 3), round(float(y), 3)] for x, y in scaled]


def chart(looks: Sequence[Seen], store: _images.Shards, seed: int) -> dict[str, Any]:
    """What the map's script draws."""
    first = looks[0].test
    rows = _drawn(first, seed)
    keys = first.sha256[rows]
    sprite, columns = _sprite([str(k) for k in keys], store)
    labels = [first.classes[i] if i >= 0 else _select.UNLABELLED for i in first.labels[rows]]
    return {
        "sprite": sprite,
        "columns": columns,
        "tile": TILE,
        "labels": labels,
        "sources": first.sources[rows].tolist(),
        "encoders": {seen.name: _places(seen, keys, seed) for seen in looks},
    }


# ---- examples ----------------------------------------------------------------------------------


def _table(e: Embeddings) -> pd.DataFrame:
    labels = [e.classes[i] if i >= 0 else None for i in e.labels]
    return pd.DataFrame({"sha256": e.sha256, "label": labels, "source": e.sources})


def retrieval(seen: Seen, store: _images.Shards, seed: int) -> list[list[dict[str, Any]]]:
    """Held-out queries, the same for every encoder, with the nearest training images."""
    held_out = (_table(seen.test), seen.test.features)
    training = (_table(seen.train), seen.train.features)
    return [
        [
            {
                "image": _images.uri(store.get(h.key)),
                "label": h.label,
                "source": h.source,
                "right": h.right,
            }
            for h in (query, *hits)
        ]
        for query, hits in _select.neighbours(held_out, training, QUERIES, seed)
    ]


def mistakes(seen: Seen, store: _images.Shards) -> list[dict[str, Any]]:
    """The labelled held-out images that the linear probe is wrong about with most confidence."""
    classes = np.asarray(seen.test.classes)
    known = seen.test.labels >= 0
    truth = np.where(known, classes[seen.test.labels], "")
    wrong = np.flatnonzero(known & (seen.predicted != truth))
    order = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:MISTAKES]
    return [
        {
            "image": _images.uri(store.get(str(seen.test.sha256[i]))),
            "label": str(truth[i]),
            "predicted": str(seen.predicted[i]),
            "confidence": float(seen.confidence[i]),
        }
        for i in order
    ]


# ---- the page ----------------------------------------------------------------------------------


def _inline(data: bytes) -> str:
    """A PNG with at most 256 colours: plots need no more, and the page stays small."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return _images.png_uri(np.asarray(image.quantize(256).convert("RGB")))


def analyses(looks: Sequence[Seen]) -> list[dict[str, Any]]:
    """Pictures by analysis, encoders beside each other."""
    keys = list(dict.fromkeys(k for seen in looks for k in seen.pictures))
    reasons = {kind: text for seen in looks for kind, text in seen.missing.items()}
    found = []
    for kind in dict.fromkeys([*(k for k, _ in keys), *reasons]):
        shown = [
            {
                "title": what.replace("_", " "),
                "pictures": [
                    (s.name, _inline(s.pictures[kind, what]))
                    for s in looks
                    if (kind, what) in s.pictures
                ],
            }
            for one, what in keys
            if one == kind
        ]
        missing = [(s.name, s.missing[kind]) for s in looks if kind in s.missing]
        found.append({"name": kind.replace("_", " "), "shown": shown, "missing": missing})
    return found


def render(
    looks: Sequence[Seen], table: pd.DataFrame, likeness: Likeness, shards: Path, seed: int
) -> str:
    """The page; ``table`` holds all values (encoder, measure, metric, slice, value, low, high)."""
    store = _images.Shards(shards)
    names = [seen.name for seen in looks]
    context = {
        "contents": CONTENTS,
        "looks": [{"name": s.name, "about": s.about} for s in looks],
        "images": len(looks[0].test),
        "names": names,
        "lines": heat(table, names),
        "chart": chart(looks, store, seed),
        "retrieval": [(s.name, retrieval(s, store, seed)) for s in looks],
        "mistakes": [(s.name, mistakes(s, store)) for s in looks],
        "likeness": likeness.table(names),
        "layers": [(f"{a} and {b}", _inline(p)) for (a, b), p in likeness.pictures.items()],
        "analyses": analyses(looks),
    }
    return html.render(context, "comparison", base="page")
