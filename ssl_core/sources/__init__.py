"""Kinds of places that images come from, found by file name.

A kind is ``matches(location, root) -> bool`` and ``listing(location, root) -> Iterator[Item]``.
Kinds claim disjoint locations; :func:`listing` asks them in alphabetical order. An item is an
image's ref with what is known about it, or something that was found and refused, with the
reason: a source never skips in silence. Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import plugins
from ..errors import HeadwaterError
from ._item import Item

__all__ = ["Item", "listing"]


def listing(location: str, root: Path) -> Iterator[Item]:
    """Everything one entry of ``data.sources`` holds, in a fixed order.

    Raises:
        HeadwaterError: no kind of source matches, or the source cannot be read.
    """
    for name in plugins.names("sources"):
        kind = plugins.load("sources", name)
        if kind.matches(location, root):
            items: Iterator[Item] = kind.listing(location, root)
            return items
    kinds = ", ".join(plugins.names("sources"))
    raise HeadwaterError(
        f"source '{location}'",
        f"does not exist and is of no known kind ({kinds})",
        "name a folder, a .csv or .parquet manifest, a .tar or {000..003}.tar, or s3://bucket/prefix",
    )
