"""Where shards lie: a folder, or ``s3://bucket/prefix`` with whole shards kept on the local disk.

Of S3, every shard is fetched whole, some ahead of their use, and compared with its checksum in
index.json before a byte of it is decoded. Fetched shards are files of a cache folder, named by
their checksum: the ranks of a machine share it, each shard is fetched once, and the ones used
longest ago make room.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from . import s3
from .artifacts import atomic_file, read_json, sha256_file
from .errors import HeadwaterError
from .lock import exclusive

ABOUT, INDEX = "index.json", "index.parquet"
PLACE = "place.json"  # beside an index whose shards lie elsewhere (upload.py)
DISK_BYTES = 8 * 2**30  # of fetched shards
CACHE = "HEADWATER_CACHE"  # the variable that names the cache folder
MEND = "run stage shard again, or dvc pull"
UPLOAD = "upload the shards again"
OTHER = f"does not match its checksum in {ABOUT}"


def _table(source: Any, split: str | None) -> pd.DataFrame:
    chosen = None if split is None else [("split", "==", split)]
    return pd.read_parquet(source, engine="pyarrow", filters=chosen)


class Folder:
    """Shards in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / ABOUT).exists():
            rule = f"holds no shards ({ABOUT} is missing)"
            raise HeadwaterError(path, rule, "run stage shard")
        self.about: dict[str, Any] = read_json(path / ABOUT)

    def table(self, split: str | None) -> pd.DataFrame:
        """The index of one split, or of all."""
        return _table(self.path / INDEX, split)

    @contextlib.contextmanager
    def open(self, shard: str, stop: threading.Event | None = None) -> Iterator[int]:
        """A file descriptor of a shard.

        Raises:
            HeadwaterError: it is missing or cannot be opened.
        """
        try:
            handle = os.open(self.path / shard, os.O_RDONLY)
        except OSError as error:
            rule = f"shard cannot be opened ({error.strerror})"
            raise HeadwaterError(self.path / shard, rule, MEND) from None
        try:
            yield handle
        finally:
            os.close(handle)

    def fetch(self, shard: str, stop: threading.Event | None = None) -> None:
        """Let the system read a shard into its page cache."""
        if hasattr(os, "posix_fadvise"):
            with self.open(shard) as handle:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)

    def verify(self) -> int:
        for name, known in self.about["shards"].items():
            path = self.path / name
            if not path.exists():
                raise HeadwaterError(path, "shard is missing", MEND)
            # The size first: it finds a truncated file without reading it.
            same = path.stat().st_size == known["bytes"]
            if not same or sha256_file(path) != known["sha256"]:
                raise HeadwaterError(path, f"shard {OTHER}", MEND)
        if sha256_file(self.path / INDEX) != self.about.get(INDEX):
            raise HeadwaterError(self.path / INDEX, OTHER, MEND)
        return len(self.about["shards"])


def _cache_folder() -> Path:
    given = os.environ.get(CACHE)
    return (Path(given) if given else Path.home() / ".cache" / "headwater") / "shards"


class Bucket:
    """Shards below ``s3://bucket/prefix``.

    The cache holds ``disk_bytes``, or ``keep`` of the largest shards if that is more: fewer would
    be fetched again and again.
    """

    def __init__(self, url: str, keep: int, disk_bytes: int = DISK_BYTES) -> None:
        self.url = url.rstrip("/")
        self.bucket, self.prefix = s3.split(self.url)
        self.cache = _cache_folder()
        try:
            self.about: dict[str, Any] = json.loads(self._small(ABOUT))
        except s3.Missing:
            rule = f"holds no shards ({ABOUT} is missing)"
            raise HeadwaterError(self.url, rule, UPLOAD) from None
        sizes = sorted((s["bytes"] for s in self.about["shards"].values()), reverse=True)
        self.room = max(disk_bytes, sum(sizes[:keep]))
        self._locks = {name: threading.Lock() for name in self.about["shards"]}

    def _get(
        self, name: str, out: IO[bytes], digest: Any, stop: threading.Event | None = None
    ) -> None:
        """Write an object to ``out`` and ``digest``; raises what s3.download raises."""

        def take(chunk: bytes) -> None:
            digest.update(chunk)
            out.write(chunk)

        s3.download(f"{self.url}/{name}", take, stop=stop)

    def _small(self, name: str) -> bytes:
        out = io.BytesIO()
        self._get(name, out, hashlib.sha256())
        return out.getvalue()

    def table(self, split: str | None) -> pd.DataFrame:
        """The index of one split, or of all."""
        try:
            data = self._small(INDEX)
        except s3.Missing:
            raise HeadwaterError(f"{self.url}/{INDEX}", "is missing", UPLOAD) from None
        if hashlib.sha256(data).hexdigest() != self.about.get(INDEX):
            raise HeadwaterError(f"{self.url}/{INDEX}", OTHER, UPLOAD)
        return _table(io.BytesIO(data), split)

    def _file(self, shard: str) -> Path:
        return self.cache / f"{self.about['shards'][shard]['sha256']}.tar"

    def fetch(self, shard: str, stop: threading.Event | None = None) -> None:
        """Have a shard in the cache.

        Raises:
            HeadwaterError: S3 is dead, or the object is missing, cut short or altered.
            s3.Stopped: ``stop`` was set.
        """
        file = self._file(shard)
        # The one lock is for this process's threads, the other for other processes.
        with self._locks[shard], exclusive(self.cache / f".{file.stem[:2]}.lock"):
            if not file.exists():
                self._download(shard, file, stop)
                self._make_room()

    def _download(self, shard: str, file: Path, stop: threading.Event | None) -> None:
        ref, known, digest = f"{self.url}/{shard}", self.about["shards"][shard], hashlib.sha256()
        try:
            with atomic_file(file) as temp, temp.open("wb") as out:
                self._get(shard, out, digest, stop)
                if out.tell() != known["bytes"]:
                    rule = f"has {out.tell():,} bytes, index.json says {known['bytes']:,}"
                    raise HeadwaterError(ref, rule, UPLOAD)
                if digest.hexdigest() != known["sha256"]:
                    raise HeadwaterError(ref, f"shard {OTHER}", UPLOAD)
        except s3.Missing:
            raise HeadwaterError(ref, "shard is missing", UPLOAD) from None

    def _make_room(self) -> None:
        """Remove the shards used longest ago. One that is open can be read to its end."""
        files = []
        for path in self.cache.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                about = path.stat()
                files.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.room:
                return
            path.unlink(missing_ok=True)
            total -= size

    @contextlib.contextmanager
    def open(self, shard: str, stop: threading.Event | None = None) -> Iterator[int]:
        """A file descriptor of a shard, which is fetched if the cache lacks it.

        Raises:
            As :meth:`fetch`.
        """
        handle = self._handle(shard, stop)
        try:
            yield handle
        finally:
            os.close(handle)

    def _handle(self, shard: str, stop: threading.Event | None) -> int:
        file = self._file(shard)
        while True:
            try:
                handle = os.open(file, os.O_RDONLY)
            except FileNotFoundError:
                self.fetch(shard, stop)  # if it makes room again before we open it: once more
                continue
            with contextlib.suppress(FileNotFoundError):
                os.utime(file)  # used now
            return handle

    def verify(self) -> int:
        """Compare every object's presence and size; contents are compared when they are fetched."""
        found: dict[str, int] = {}
        start = f"{self.prefix}/" if self.prefix else ""
        with s3.errors(self.url):
            lister = s3.client().get_paginator("list_objects_v2")
            for page in lister.paginate(Bucket=self.bucket, Prefix=start):
                found |= {o["Key"][len(start) :]: o["Size"] for o in page.get("Contents", ())}
        for name, known in self.about["shards"].items():
            if name not in found:
                raise HeadwaterError(f"{self.url}/{name}", "shard is missing", UPLOAD)
            if found[name] != known["bytes"]:
                rule = f"has {found[name]:,} bytes, index.json says {known['bytes']:,}"
                raise HeadwaterError(f"{self.url}/{name}", rule, UPLOAD)
        return len(self.about["shards"])


Store = Folder | Bucket


def at(place: Path | str, keep: int = 1, disk_bytes: int = DISK_BYTES) -> Store:
    """The shards in a folder or below an ``s3://`` address (also as a Path makes of one).

    A folder may say in place.json that its shards were moved to S3.

    Raises:
        HeadwaterError: there are none, or S3 does not answer.
    """
    text = str(place)
    if text.startswith("s3:/"):  # Path turns // into /
        url = s3.SCHEME + text.removeprefix("s3:").lstrip("/")
        return Bucket(url, keep, disk_bytes)
    if (Path(place) / PLACE).exists():
        return Bucket(read_json(Path(place) / PLACE)["url"], keep, disk_bytes)
    return Folder(Path(place))


def verify(place: Path | str) -> int:
    """Compare every shard with its recorded size and sha256; return how many there are.

    On S3, the sizes: a shard's checksum is compared each time that it is fetched.

    Raises:
        HeadwaterError: a shard is missing or altered; the message names it.
    """
    return at(place).verify()
