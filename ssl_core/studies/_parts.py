"""Parts and variants of shards, as shards of their own: other images, labels or pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from .. import shards, store
from ..artifacts import atomic_dir, read_json, sha256_file, sha256_json
from ..errors import HeadwaterError

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]  # (H, W, C) -> the same shape
MAX_BYTES = 32 * 2**20


def index(folder: Path, split: str | None = None) -> pd.DataFrame:
    """The rows of some shards."""
    return store.Folder(folder).table(split)


def write(
    home: Path, folder: Path, rows: pd.DataFrame, change: Change | None = None, name: str = ""
) -> Path:
    """Shards of ``rows`` (of ``index``, labels may differ), kept below ``home`` by their content.

    ``change`` alters the training images only: what is measured stays clean. ``name`` stands for it
    in the digest.

    Raises:
        HeadwaterError: ``change`` for images that are not RGB.
    """
    about = read_json(folder / "index.json")
    if change and about.get("channels", 3) != 3:
        rule = f"has {about['channels']} channels: only RGB can be altered"
        raise HeadwaterError(folder, rule, "choose another set in study.sets")
    listed = rows[["split", "key", "label"]].astype(str).to_numpy().tolist()
    digest = sha256_json([sha256_file(folder / "index.json"), listed, name])[:12]
    out = home / "sets" / digest
    if not (out / "index.json").exists():
        ordered = rows.sort_values(["split", "shard", "offset"], kind="stable")
        with atomic_dir(out) as temp:
            samples = _samples(folder, ordered, change)
            shards.write(temp, samples, MAX_BYTES, about["max_side"], about.get("channels", 3))
    return out


def _samples(folder: Path, rows: pd.DataFrame, change: Change | None) -> Iterator[shards.Sample]:
    place = store.Folder(folder)
    for shard, part in rows.groupby("shard", sort=False):
        with place.open(str(shard)) as handle:
            for row in cast(Iterator[Any], part.itertuples(index=False)):
                data, ext = os.pread(handle, row.size, row.offset), row.ext
                if change and row.split == "train":
                    data, ext = _changed(data, row.key, change), "png"
                label = None if pd.isna(row.label) else str(row.label)
                yield shards.Sample(row.split, row.key, ext, data, label, row.group, row.source)


def _changed(data: bytes, key: str, change: Change) -> bytes:
    rng = np.random.default_rng(int(key[:15], 16))  # of the image: the same in every set
    with Image.open(io.BytesIO(data)) as image:
        pixels = change(np.asarray(image.convert("RGB")), rng)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


# ---- which images ------------------------------------------------------------------------------


def nested(keys: pd.Series, groups: pd.Series, counts: list[int], seed: int) -> list[set[str]]:
    """Sets of keys, each within the next larger one, with the groups' shares as in the whole.

    Keys are taken in one order, in which every group is spread evenly: its k-th image of n comes
    at (k + u) / n, with u drawn for each group. ``groups``: of each key, for instance its label.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(keys))
    code, names = pd.factorize(groups.iloc[order].fillna(""))
    place = np.empty(len(order))
    for number in range(len(names)):
        mine = np.flatnonzero(code == number)
        place[mine] = (np.arange(len(mine)) + rng.random()) / len(mine)
    ranked = keys.iloc[order].iloc[np.argsort(place, kind="stable")].tolist()
    return [set(ranked[:count]) for count in counts]


def of_classes(rows: pd.DataFrame, classes: int, images: int, seed: int) -> pd.DataFrame:
    """``images`` labelled training rows of so many classes drawn by ``seed``, equally many of each.

    Empty where fewer classes have enough of them.
    """
    known = rows[(rows["split"] == "train") & rows["label"].notna()]
    each = -(-images // classes)  # up: the first classes get one more
    count = known["label"].value_counts()
    fit = sorted(count[count >= each].index)
    if len(fit) < classes or images < classes:
        return known.iloc[:0]
    rng = np.random.default_rng([seed, classes])
    chosen = rng.permutation(fit)[:classes]
    parts = []
    for number, name in enumerate(chosen):
        take = images // classes + (number < images % classes)
        mine = known[known["label"] == name]
        parts.append(mine.iloc[np.sort(rng.permutation(len(mine))[:take])])
    found: pd.DataFrame = pd.concat(parts)
    return found


def require_disjoint(folder: Path, other: Path) -> None:
    """Refuse training shards that hold a test image of others, by content or by group.

    Raises:
        HeadwaterError: an image or group is in both.
    """
    train, test = index(folder, "train"), index(other, "test")
    for column in ("key", "group"):
        both = set(train[column]) & set(test[column])
        if both:
            rule = f"trains on {len(both)} of the test split ({column})"
            raise HeadwaterError(folder, rule, "delete runs/studies and run again")
