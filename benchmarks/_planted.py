"""Days of real embedded images to which something known was done.

Emoji art of three vendors is the past, a fourth the new vendor; scikit-learn's digits are the
second set. Features are the seed encoder's, the head is the stage's linear probe. Pictures of
one glyph never straddle training, reference and day.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ssl_core import models
from ssl_core.evaluate import _head, linear
from ssl_core.stages import seed_embed
from ssl_core.types import Array, Embeddings

DATA = Path(__file__).parent.parent / "data"
SIDE = 64
Rng = np.random.Generator
Picture = Image.Image
Names = NDArray[np.str_]
SETS = ("emoji", "digits")
CASES = (
    "none",
    "label shift",
    "blurred",
    "dark",
    "new class",
    "new vendor",
    "new vendor, half the day",
)
LABELS = {  # what a right diagnosis says
    "none": "none",
    "label shift": "label shift",
    "blurred": "quality fault",
    "dark": "quality fault",
    "new class": "new class",
    "new vendor": "covariate shift",
    "new vendor, half the day": "confounder",
}


@dataclass(frozen=True)
class Pool:
    """Drawings to make pictures of, all rows aligned; ``vendor`` "" where there is none."""

    make: Callable[[int, Rng], Picture]
    label: Names
    group: Names
    vendor: Names
    unseen: str  # the class that the past never shows
    new: Callable[[int, Rng], Picture]  # the same drawing by the new vendor


@dataclass(frozen=True)
class Batch:
    """Pictures uint8 (N, S, S, 3) with features (N, D) and labels (N,)."""

    pixels: NDArray[np.uint8]
    features: Array
    label: Names
    group: Names


@dataclass(frozen=True)
class World:
    """A head, its reference and the rows of the pool that days may show."""

    pool: Pool
    head: _head.Head
    reference: Batch
    known: NDArray[np.int64]
    unseen: NDArray[np.int64]


def _unpacker(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"unpack_{name}", DATA / name / "unpack.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@functools.cache
def emoji() -> Pool:
    """Glyphs without skin tones; classes are Unicode's groups, flags are the unseen one."""
    tool = _unpacker("emoji")
    table = pd.read_csv(DATA / "emoji/labels.csv", dtype={"code": str, "group": str})
    vendors = (*tool.VENDORS, tool.NEW_VENDOR)
    table = table[(table["tone"] == 0) & (table[list(vendors)] == 1).all(axis=1)]
    art = {v: tool.read_tar(v) for v in vendors}
    rows = [
        (r.code, r.label.split("/")[0], r.group, v)
        for v in tool.VENDORS
        for r in table.itertuples(index=False)
    ]
    code, label, group, vendor = (np.array(c) for c in zip(*rows, strict=True))
    return Pool(
        lambda i, rng: tool.pose(art[vendor[i]][code[i]], rng)[0],
        label,
        group,
        vendor,
        "flags",
        lambda i, rng: tool.pose(art[tool.NEW_VENDOR][code[i]], rng)[0],
    )


@functools.cache
def digits() -> Pool:
    """Digits on grey paper; 0 is the unseen one, the new vendor prints in blue on yellow."""
    from sklearn.datasets import load_digits

    tool = _unpacker("digits")
    flat, label = load_digits(return_X_y=True)

    def make(i: int, rng: Rng) -> Picture:
        return tool.picture(flat[i].reshape(8, 8), rng).resize((SIDE, SIDE), Image.BICUBIC)

    def new(i: int, rng: Rng) -> Picture:
        grey = np.asarray(make(i, rng).convert("L"), np.float64)[..., None] / 255
        ink, paper = np.array([40, 60, 190]), np.array([250, 235, 150])
        return Image.fromarray((ink + (paper - ink) * grey).astype(np.uint8))

    names, rows = label.astype(str), np.arange(len(label)).astype(str)
    return Pool(make, names, rows, np.full(len(names), ""), "0", new)


@functools.cache
def _encoder() -> tuple[torch.nn.Module, tuple[float, ...], tuple[float, ...]]:
    return models.seed_encoder(models.SEED_NAME)


def embed(pictures: Sequence[Picture], label: Names, group: Names) -> Batch:
    """The seed encoder's features."""
    module, mean, std = _encoder()
    pixels = np.stack([np.asarray(p.convert("RGB"), np.uint8) for p in pictures])
    stack = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (N, S, S, 3) -> (N, 3, S, S)
    parts = [seed_embed.features(module, mean, std, x) for x in stack.split(64)]
    return Batch(pixels, np.concatenate(parts), label, group)


def batch(pool: Pool, rows: NDArray[np.int64], rng: Rng, new: bool = False) -> Batch:
    """Pictures of some rows."""
    draw = pool.new if new else pool.make
    return embed([draw(int(i), rng) for i in rows], pool.label[rows], pool.group[rows])


def world(name: str, seed: int, train: int = 1500, reference: int = 400) -> World:
    """Draw groups for training, reference and days; fit the head."""
    pool, rng = {"emoji": emoji, "digits": digits}[name](), np.random.default_rng([seed, 7])
    groups = rng.permutation(np.unique(pool.group))
    cuts = [round(share * len(groups)) for share in (0.4, 0.65)]
    first, second, third = np.split(groups, cuts)
    old = pool.label != pool.unseen

    def rows(of: Names | None, count: int) -> NDArray[np.int64]:
        mask = np.isin(pool.group, of)
        found = rng.permutation(np.flatnonzero(mask & old))
        return found[:count]

    taught = batch(pool, rows(first, train), rng)
    classes, codes = np.unique(taught.label, return_inverse=True)
    blank = np.full(len(codes), "")
    head = linear.fit(
        Embeddings(taught.features, codes, tuple(classes.tolist()), blank, taught.group, blank)
    )
    later = np.isin(pool.group, third)
    return World(
        pool,
        head,
        batch(pool, rows(second, reference), rng),
        np.flatnonzero(later & old),
        np.flatnonzero(~old),
    )


def shifted(pool: Pool, rows: NDArray[np.int64], count: int, rng: Rng) -> NDArray[np.int64]:
    """Rows drawn so that classes come in other shares: each as likely as its rank from below."""
    names, code = np.unique(pool.label[rows], return_inverse=True)
    share = 0.5 ** rng.permutation(len(names))
    weight = (share / np.bincount(code))[code]
    return rng.choice(rows, count, replace=False, p=weight / weight.sum())


def darken(picture: Picture) -> Picture:
    """A tenth to a quarter of the light, with sensor noise."""
    return picture.point(lambda v: int(v * 0.2))


def day(w: World, case: str, seed: int, count: int = 200) -> tuple[Batch, Names]:
    """One day of a case, and the name of the camera each picture came from."""
    rng = np.random.default_rng([seed, 11, CASES.index(case)])
    camera = rng.permutation(np.where(np.arange(count) < count // 2, "cam-a", "cam-b"))
    rows = rng.choice(w.known, count)
    if case == "label shift":
        rows = shifted(w.pool, w.known, count, rng)
    if case == "new class":
        rows[: count // 4] = rng.choice(w.unseen, count // 4)
    half = camera == "cam-b"
    new = {"new vendor": np.full(count, True), "new vendor, half the day": half}.get(
        case, np.full(count, False)
    )
    pictures = [
        (w.pool.new if n else w.pool.make)(int(i), rng) for i, n in zip(rows, new, strict=True)
    ]
    if case == "blurred":
        pictures = [p.filter(ImageFilter.GaussianBlur(2.5)) for p in pictures]
    if case == "dark":
        pictures = [darken(p) for p in pictures]
    return embed(pictures, w.pool.label[rows], w.pool.group[rows]), camera
