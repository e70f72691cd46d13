"""Shards moved to S3, where any machine streams them from.

They come to lie below ``<place>/<first 16 digits of index.json's sha256>/``. index.json holds every
shard's checksum, so that one address always means the same bytes: an upload that was cut off goes
on where it was, and shards that a running training reads are never overwritten. index.json goes
last: without it a reader finds no shards, rather than a part of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import s3
from .artifacts import sha256_file, write_json
from .errors import HeadwaterError
from .store import ABOUT, INDEX, PLACE, Bucket


def move(folder: Path, place: str) -> str:
    """Upload the shards of ``folder``, remove its tars, write place.json; return the address.

    Raises:
        HeadwaterError: S3 does not answer, refuses, or holds another number of bytes afterwards.
    """
    url = f"{place.rstrip('/')}/{sha256_file(folder / ABOUT)[:16]}"
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
        if there.get(key) != file.stat().st_size:
            _put(client, bucket, key, file)


def _sizes(client: Any, bucket: str, prefix: str) -> dict[str, int]:
    """Bytes of the objects below a prefix."""
    place = f"{s3.SCHEME}{bucket}/{prefix}"
    try:
        with s3.errors(place):
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", ())}
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
