"""Objects below ``s3://bucket/prefix``, described by any metadata.csv among them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from ..errors import HeadwaterError
from ..images import read_bytes
from ..s3 import SCHEME, Missing, client, errors, split
from ._item import METADATA, Item, Tables, ignored, join

PAGE = 1000  # objects per answer, the most that S3 gives


def matches(location: str, root: Path) -> bool:
    """Whether this is an S3 address."""
    return location.startswith(SCHEME)


def _objects(location: str, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """(path below the prefix, version), page by page.

    Raises:
        HeadwaterError: S3 does not answer or refuses.
    """
    s3 = client()
    try:
        with errors(location):
            lister = s3.get_paginator("list_objects_v2")
            size = {"PageSize": PAGE}
            for page in lister.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig=size):
                for found in page.get("Contents", ()):
                    yield found["Key"][len(prefix) :], f"{found['ETag']}:{found['Size']}"
    except Missing:  # a 404 to a listing means the bucket
        rule, fix = "its bucket does not exist", "check data.sources and AWS_ENDPOINT_URL"
        raise HeadwaterError(location, rule, fix) from None


def listing(location: str, root: Path) -> Iterator[Item]:
    """Every object below the prefix, in S3's order.

    Raises:
        HeadwaterError: S3 does not answer or refuses, or a metadata.csv is unusable.
    """
    bucket, key = split(location)
    if not bucket:
        raise HeadwaterError(f"source '{location}'", "names no bucket", "write s3://bucket/prefix")
    prefix = key.rstrip("/") + "/" if key.strip("/") else ""
    base = f"{SCHEME}{bucket}/{prefix}"
    tables, files, described = Tables(), dict[str, Item](), list[str]()
    for path, version in sorted(_objects(location, bucket, prefix)):
        folder, name = posixpath.split(path)
        if not name or any(part.startswith(".") for part in folder.split("/")):
            continue  # a folder's marker, or hidden
        if name == METADATA:
            described.append(folder)
        elif not ignored(name):
            files[path] = Item(base + path, version=version)
    for folder in sorted(described, key=lambda f: (f.count("/") + bool(f), f)):  # top down
        place = base + posixpath.join(folder, METADATA)
        tables.add(folder, read_bytes(place, root), place)
    yield from join(files, tables, posixpath.basename(key.rstrip("/")) or bucket, base)
