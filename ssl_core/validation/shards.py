"""Shards: every kept image once, where the index says it is, and no group on both sides."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..artifacts import read_json, sha256_file
from ..store import ABOUT, INDEX
from ._gx import CRITICAL, Outcome, Rule, between, check, largest

SUITE = "shards"
BLOCK = tarfile.BLOCKSIZE


def _member(handle: int, offset: int) -> tuple[str, int]:
    """Name and size in the tar header before ``offset``; ("", -1) where there is none."""
    try:
        head = os.pread(handle, BLOCK, offset - BLOCK)
        info = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
    except (tarfile.TarError, OSError, ValueError):
        return "", -1
    return info.name, info.size


def _found(folder: Path, index: pd.DataFrame) -> Iterator[pd.Series]:
    """Whether each image lies where the index says, shard by shard."""
    for shard, part in index.groupby("shard", sort=False):
        file = folder / str(shard)
        if not file.is_file():
            yield pd.Series(0, part.index)
            continue
        handle, end = os.open(file, os.O_RDONLY), file.stat().st_size
        try:
            rows = zip(part["key"], part["ext"], part["offset"], part["size"], strict=True)
            there = [
                _member(handle, offset) == (f"{key}.{ext}", size) and offset + size <= end
                for key, ext, offset, size in rows
            ]
        finally:
            os.close(handle)
        yield pd.Series(there, part.index).astype("int64")


def by_image(folder: Path, index: pd.DataFrame) -> pd.DataFrame:
    """One row per line of the index: key, whether it lies there, and its group's splits."""
    parts = list(_found(folder, index))
    there = pd.concat(parts) if parts else pd.Series(dtype="int64")
    return pd.DataFrame(
        {
            "key": index["key"],
            "size": index["size"],
            "there": there.reindex(index.index),
            "splits": index.groupby("group")["split"].transform("nunique"),
        }
    ).reset_index(drop=True)


def by_shard(
    folder: Path, index: pd.DataFrame, recorded: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """One row per shard: whether checksum, size and number of images are those recorded."""
    files = {f.name for f in folder.glob("*.tar")}
    held = index["shard"].value_counts()
    rows = []
    for name in sorted({*files, *recorded, *held.index}):
        about, file = recorded.get(name, {}), folder / name
        there = name in files
        rows.append(
            {
                "shard": name,
                "same_bytes": int(there and file.stat().st_size == about.get("bytes")),
                "same_sha256": int(there and sha256_file(file) == about.get("sha256")),
                "same_count": int(held.get(name, 0) == about.get("samples")),
            }
        )
    return pd.DataFrame(rows, columns=["shard", "same_bytes", "same_sha256", "same_count"])


def as_whole(folder: Path, index: pd.DataFrame, expected: Sequence[str]) -> pd.DataFrame:
    """One row about the index: images that are not in it, and that should not be."""
    own, due = set(index["key"]), set(expected)
    known = read_json(folder / ABOUT).get(INDEX)
    return pd.DataFrame(
        {
            "missing": [len(due - own)],
            "surplus": [len(own - due)],
            "index": [int(known == sha256_file(folder / INDEX))],
        }
    )


def image_rules() -> list[Rule]:
    """Rules for single images."""
    unique = {"column": "key"}
    return [
        Rule("every image is stored once", CRITICAL, "ExpectColumnValuesToBeUnique", unique),
        between("every image lies where the index says", "there", 1, None, CRITICAL),
        between("no image is empty", "size", 1, None, CRITICAL),
        between("no group is on both sides of the split", "splits", None, 1, CRITICAL),
    ]


def shard_rules() -> list[Rule]:
    """Rules for single shards, against index.json."""
    return [
        between("shards have their recorded size", "same_bytes", 1, None, CRITICAL),
        between("shards match their sha256", "same_sha256", 1, None, CRITICAL),
        between("shards hold as many images as recorded", "same_count", 1, None, CRITICAL),
    ]


def whole_rules() -> list[Rule]:
    """Rules for the index."""
    return [
        largest("no kept image is missing from the index", "missing", None, 0),
        largest("no other image is in the index", "surplus", None, 0),
        largest("the index matches its sha256", "index", 1, None),
    ]


def judge(folder: Path, expected: Sequence[str]) -> list[Outcome]:
    """Outcomes for the shards of a folder, which should hold the images ``expected`` (sha256)."""
    index = pd.read_parquet(folder / INDEX)
    recorded = read_json(folder / ABOUT)["shards"]
    found = check(SUITE, as_whole(folder, index, expected), whole_rules())
    found += check(SUITE, by_shard(folder, index, recorded), shard_rules(), "shard")
    return found + check(SUITE, by_image(folder, index), image_rules(), "key")
