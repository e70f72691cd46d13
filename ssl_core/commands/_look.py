"""What a folder or bucket of pictures holds, found by looking at a few hundred of them."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .. import bands, images, sources
from ..errors import HeadwaterError
from ..images import Reject
from ..parallel import ordered_map
from ..sources import Item

MOST_LISTED = 200_000  # names that are looked at, to keep a bucket of millions quick
SAMPLE = 300  # files that are read


@dataclass(frozen=True)
class Found:
    """``images``: usable ones, estimated from the sample, as are formats, sizes and rejects."""

    listed: int
    all_listed: bool
    images: int
    labelled: int
    classes: dict[str, int]
    channels: int
    formats: dict[str, int]
    sizes: dict[str, int]  # of the longest side: least, median, most; of the other: shortest
    rejects: dict[str, int] = field(default_factory=dict)  # reason -> files, of the sample
    examples: dict[str, str] = field(default_factory=dict)  # reason -> one of them

    @property
    def tail(self) -> float:
        """Largest class over smallest."""
        return max(self.classes.values()) / min(self.classes.values()) if self.classes else 1.0


def look(location: str, root: Path, most: int = SAMPLE) -> Found:
    """List a source and read up to ``most`` of its files, evenly spread.

    Raises:
        HeadwaterError: the source cannot be listed, or holds no usable image.
    """
    items = list(islice(sources.listing(location, root), MOST_LISTED + 1))
    whole, items = len(items) <= MOST_LISTED, items[:MOST_LISTED]
    if not items:
        raise HeadwaterError(f"source '{location}'", "holds no file", "name a folder with pictures")
    step = max(1, len(items) / most)
    sample = [items[int(i * step)] for i in range(min(most, len(items)))]
    channels = _channels(sample, root)
    looked = list(
        ordered_map(lambda i: _examine(i, root, channels), sample, os.cpu_count() or 1, ahead=32)
    )
    return _sum_up(location, items, whole, sample, looked, channels)


def _channels(sample: list[Item], root: Path) -> int:
    """Bands of the first readable .npy array; 3 without one."""
    for item in sample:
        if item.ref.endswith(".npy") and item.reject is None:
            try:
                shape = bands.read_header(images.read_bytes(item.ref, root)).shape
            except (Reject, ValueError):
                continue
            return shape[2] if len(shape) == 3 and shape[2] <= bands.MOST else 1
    return 3


def _examine(item: Item, root: Path, channels: int) -> images.Facts | Reject:
    if item.reject:
        return item.reject
    try:
        return images.examine(images.read_bytes(item.ref, root), channels=channels)
    except Reject as reject:
        return reject


def _sum_up(
    location: str,
    items: list[Item],
    whole: bool,
    sample: list[Item],
    looked: list[images.Facts | Reject],
    channels: int,
) -> Found:
    facts = [f for f in looked if isinstance(f, images.Facts)]
    bad = [(i, r) for i, r in zip(sample, looked, strict=True) if isinstance(r, Reject)]
    if not facts:
        item, reject = bad[0]
        rule = f"holds no usable image ({item.ref}: {reject})"
        raise HeadwaterError(f"source '{location}'", rule, "name a folder with pictures")
    longest = [max(f.width, f.height) for f in facts]
    sides = {
        "least": min(longest),
        "median": int(statistics.median(longest)),
        "most": max(longest),
        "shortest": min(min(f.width, f.height) for f in facts),
    }
    labels = Counter(i.label for i in items if i.label is not None and i.reject is None)
    return Found(
        listed=len(items),
        all_listed=whole,
        images=round(len(items) * len(facts) / len(sample)),
        labelled=sum(labels.values()),
        classes=dict(labels.most_common()),
        channels=channels,
        formats=dict(Counter(f.format for f in facts).most_common()),
        sizes=sides,
        rejects=dict(Counter(r.reason for _, r in bad).most_common()),
        examples={r.reason: i.ref for i, r in reversed(bad)},
    )


def plain(found: Found) -> dict[str, Any]:
    """For JSON."""
    return {
        "listed": found.listed,
        "all_listed": found.all_listed,
        "images": found.images,
        "labelled": found.labelled,
        "classes": len(found.classes),
        "channels": found.channels,
        "formats": found.formats,
        "sides": found.sizes,
        "rejects": found.rejects,
    }
