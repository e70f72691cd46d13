"""Shards moved to S3, where any machine streams them from.

They come to lie below ``<place>/<first 16 digits of index.json's sha256>/``. index.json holds every
shard's checksum, so that one address always means the same bytes: an upload that was cut off goes
on where it was, and shards that a running training reads are never overwritten. index.json goes
last: without it a reader finds no shards, rather than a part of them. It goes again even if it is
there, so that its time tells when the shards were last made.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import s3
from .artifacts import sha256_file, write_json
from .errors import HeadwaterError
from .store import ABOUT, INDEX, PLACE, Bucket

DIGITS = 16  # of index.json's sha256
OBJECT = re.compile(rf"([0-9a-f]{{{DIGITS}}})/({re.escape(ABOUT)}|{re.escape(INDEX)}|[\w-]+\.tar)")
BATCH = 1000  # objects that one request deletes at most


@dataclass(frozen=True)
class Lot:
    """The shards below one address."""

    url: str
    bytes: int
    age: float  # seconds since its latest object was put

    @property
    def name(self) -> str:
        """The first digits of index.json's sha256."""
        return self.url.rpartition("/")[2]


def move(folder: Path, place: str) -> str:
    """Upload the shards of ``folder``, remove its tars, write place.json; return the address.

    Raises:
        HeadwaterError: S3 does not answer, refuses, or holds another number of bytes afterwards.
    """
    url = f"{place.rstrip('/')}/{sha256_file(folder / ABOUT)[:DIGITS]}"
    tars = sorted(folder.glob("*.tar"))
    _send(url, [*tars, folder / INDEX, folder / ABOUT])
    Bucket(url, keep=1).verify()
    for tar in tars:
        tar.unlink()
    write_json(folder / PLACE, {"url": url})
    return url


def _send(url: str, files: list[Path]) -> None:
    """Put the files that are not there yet, in order; large ones in parts."""
    client = s3.client(s3.ATTEMPTS)
    bucket, prefix = s3.split(url)
    there = _sizes(client, bucket, prefix + "/")
    for file in files:
        key = f"{prefix}/{file.name}"
        if there.get(key) != file.stat().st_size or file.name == ABOUT:
            _put(client, bucket, key, file)


def _sizes(client: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Bytes of the objects below a prefix."""
    return {o["Key"]: o["Size"] for o in _objects(client, bucket, prefix)}


def _objects(client: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    place = f"{s3.SCHEME}{bucket}/{prefix}"
    try:
        with s3.errors(place):
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [o for page in pages for o in page.get("Contents", ())]
    except s3.Missing:
        raise HeadwaterError(place, "its bucket does not exist", "check shard.place") from None


def _put(client: Any, bucket: str, key: str, file: Path) -> None:
    """An object appears whole or not at all: S3 joins the parts at the end."""
    from boto3.exceptions import S3UploadFailedError

    ref = f"{s3.SCHEME}{bucket}/{key}"
    try:
        with s3.errors(ref):
            client.upload_file(str(file), bucket, key)
    except S3UploadFailedError as error:
        fix = "check the AWS_* credentials and their rights, then run stage shard again"
        raise HeadwaterError(ref, f"was not taken ({error})", fix) from None


# ---- old ones ----------------------------------------------------------------------------------


def lots(place: str) -> list[Lot]:
    """Everything that :func:`move` left below ``place``, cut-off uploads too.

    An address below which there is anything else is not ours and left out.
    """
    bucket, prefix = s3.split(place.rstrip("/") + "/")
    found: dict[str, list[dict[str, Any]]] = {}
    strange = set()
    for item in _objects(s3.client(s3.ATTEMPTS), bucket, prefix):
        key = item["Key"].removeprefix(prefix)
        name = key.partition("/")[0]
        found.setdefault(name, []).append(item)
        if not OBJECT.fullmatch(key):
            strange.add(name)
    now, made = time.time(), []
    for name in sorted(set(found) - strange):
        newest = max(o["LastModified"].timestamp() for o in found[name])
        size = sum(o["Size"] for o in found[name])
        made.append(Lot(f"{place.rstrip('/')}/{name}", size, max(0.0, now - newest)))
    return made


def remove(url: str) -> None:
    """Delete the shards below an address of :func:`lots`; index.json first.

    Raises:
        HeadwaterError: S3 does not answer or refuses.
    """
    client = s3.client(s3.ATTEMPTS)
    bucket, prefix = s3.split(url)
    keys = [o["Key"] for o in _objects(client, bucket, prefix + "/")]
    keys.sort(key=lambda k: not k.endswith(f"/{ABOUT}"))
    with s3.errors(url):
        for key in keys[:1]:  # alone: else the order of one request's deletions is the server's
            client.delete_object(Bucket=bucket, Key=key)
        for i in range(1, len(keys), BATCH):
            batch = {"Objects": [{"Key": k} for k in keys[i : i + BATCH]], "Quiet": True}
            refused = client.delete_objects(Bucket=bucket, Delete=batch).get("Errors", [])
            if refused:
                rule = f"was not deleted ({refused[0].get('Code')})"
                fix = "check the right DeleteObject of these AWS_* credentials"
                raise HeadwaterError(f"{s3.SCHEME}{bucket}/{refused[0].get('Key')}", rule, fix)
