"""A manifest: a .csv or .parquet file whose column ``path`` names images.

Relative paths are below the manifest's folder and may not climb out of it. Absolute paths and
``s3://`` refs are taken as they are: the manifest's author names them on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import HeadwaterError
from ..images import split_tar, unsafe
from ..s3 import SCHEME
from ._item import Item, Row, known, parse_csv, ref_of, refused, version_of

KINDS = (".csv", ".parquet")


def matches(location: str, root: Path) -> bool:
    """Whether this names a table."""
    named = Path(location).suffix.lower() in KINDS and "://" not in location
    return named and not (root / location).is_dir()


def _parquet(path: Path) -> list[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        fix = "write the file again"
        raise HeadwaterError(path, f"is not a Parquet file ({error})", fix) from None
    if "path" not in table.column_names:
        raise HeadwaterError(path, "has no column 'path'", "name the column of file names 'path'")
    return [(str(row["path"] or ""), known(row)) for row in table.to_pylist()]


def _locate(name: str, folder: Path, root: Path) -> Item:
    if name.startswith(SCHEME):
        return Item(name)
    if not name or (not os.path.isabs(name) and unsafe(name)):
        shown = ref_of(folder, root) + "/" + name
        return refused(shown, "unsafe-path", "blank, or climbs out of the manifest's folder")
    path = folder / name
    member = split_tar(name)
    file = folder / member[0] if member else path
    inside = os.path.isabs(name) or file.resolve().is_relative_to(folder.resolve())
    if not inside:
        return refused(ref_of(path, root), "unsafe-path", "a link out of the manifest's folder")
    try:
        about = file.stat()
    except OSError:
        return refused(ref_of(path, root), "missing-file", "the manifest names it")
    return Item(ref_of(path, root), version=version_of(about.st_size, about.st_mtime_ns))


def listing(location: str, root: Path) -> Iterator[Item]:
    """The table's rows, in order.

    Raises:
        HeadwaterError: the table is missing or unusable.
    """
    path = root / location
    if not path.is_file():
        raise HeadwaterError(f"source '{location}'", "is not there", "correct data.sources")
    csv = path.suffix.lower() == ".csv"
    rows = parse_csv(path.read_bytes(), path) if csv else _parquet(path)
    for name, row in rows:
        item = _locate(name, path.parent, root)
        yield item if item.reject else item.described(row, path.stem)
