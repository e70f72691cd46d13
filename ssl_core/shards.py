"""WebDataset shards: byte-deterministic tars and an index of byte offsets.

Any WebDataset reader can stream the tars. The index adds random access by plain file reads
(``reader.py``).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import artifacts

BLOCK = tarfile.BLOCKSIZE  # 512: a header, and the unit that data is padded to
COLUMNS = ("split", "shard", "key", "ext", "offset", "size", "label", "group", "source")

SYNTHETIC = "synthetic:"  # the source of images that no camera took; the generator follows
DEPLOYMENT = "deployment"  # the source of images that came while a model served


def synthetic(sources: pd.Series) -> NDArray[np.bool_]:
    """Which images were made by a generator: (N,)."""
    found: NDArray[np.bool_] = sources.fillna("").str.startswith(SYNTHETIC).to_numpy(np.bool_)
    return found


@dataclass(frozen=True)
class Sample:
    """One image as it is stored: ``image`` holds the encoded bytes, ``ext`` names their format."""

    split: str
    key: str
    ext: str
    image: bytes
    label: str | None
    group: str
    source: str

    def about(self) -> bytes:
        """The sample's JSON member, without a path: equal images make equal shards anywhere."""
        record = {n: getattr(self, n) for n in ("label", "group", "source")}
        return json.dumps({"sha256": self.key, **record}, sort_keys=True).encode()


class _Shard:
    """One open tar. Nothing in it depends on time, user or machine."""

    def __init__(self, path: Path) -> None:
        self.path, self.samples = path, 0
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (close())

    def size_with(self, *members: bytes) -> int:
        """Bytes of the closed file if these members were added."""
        data = sum(BLOCK + -(-len(m) // BLOCK) * BLOCK for m in members)
        end = int(self.tar.offset) + data + 2 * BLOCK
        return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644  # mtime, uid and gid stay 0
        offset = int(self.tar.offset) + BLOCK  # a USTAR header is one block
        self.tar.addfile(info, io.BytesIO(data))
        return offset

    def add(self, sample: Sample, about: bytes) -> int:
        """Append image and JSON; return the byte offset of the image."""
        offset = self._member(f"{sample.key}.{sample.ext}", sample.image)
        self._member(f"{sample.key}.json", about)
        self.samples += 1
        return offset

    def close(self) -> dict[str, Any]:
        self.tar.close()
        digest = artifacts.sha256_file(self.path)
        return {"sha256": digest, "bytes": self.path.stat().st_size, "samples": self.samples}


class ShardWriter:
    """Writes samples in the order given; a new split or a full shard begins a new file."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.rows: list[tuple[Any, ...]] = []  # of COLUMNS
        self.shards: dict[str, dict[str, Any]] = {}
        self.open: _Shard | None = None
        self.split, self.number = "", 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_shard()

    def add(self, sample: Sample) -> None:
        """Append one sample. A shard exceeds ``max_bytes`` only if it holds a single sample."""
        about = sample.about()
        shard = self._shard_for(sample, about)
        offset = shard.add(sample, about)
        self.rows.append(
            (
                sample.split,
                shard.path.name,
                sample.key,
                sample.ext,
                offset,
                len(sample.image),
                sample.label,
                sample.group,
                sample.source,
            )
        )

    def _shard_for(self, sample: Sample, about: bytes) -> _Shard:
        same = self.open is not None and sample.split == self.split
        if self.open and same and self.open.size_with(sample.image, about) <= self.max_bytes:
            return self.open
        self._close_shard()
        self.number = self.number + 1 if same else 0
        self.split = sample.split
        self.open = _Shard(self.folder / f"{self.split}-{self.number:06d}.tar")
        return self.open

    def _close_shard(self) -> None:
        if self.open:
            self.shards[self.open.path.name] = self.open.close()
            self.open = None


def _finish(
    folder: Path, frame: pd.DataFrame, sums: dict[str, Any], max_side: int, channels: int
) -> pd.DataFrame:
    """Write index.parquet and index.json; returns the index."""
    frame.to_parquet(folder / "index.parquet", engine="pyarrow", index=False)
    classes = sorted(frame["label"].dropna().unique().tolist())
    about = {"classes": classes, "max_side": max_side, "channels": channels}
    about["index.parquet"] = artifacts.sha256_file(folder / "index.parquet")
    artifacts.write_json(folder / "index.json", about | {"shards": sums})
    return frame


def write(
    folder: Path, samples: Iterable[Sample], max_bytes: int, max_side: int, channels: int = 3
) -> pd.DataFrame:
    """Write shards, index.parquet and index.json into an existing folder; return the index.

    ``samples`` come split by split, each split in one run; all images have ``channels``.
    """
    with ShardWriter(folder, max_bytes) as writer:
        for sample in samples:
            writer.add(sample)
    frame = pd.DataFrame(writer.rows, columns=list(COLUMNS))
    return _finish(folder, frame, writer.shards, max_side, channels)


def _stored(tar: Path, rows: pd.DataFrame) -> list[Sample]:
    """The samples of one shard that ``rows`` of the index name."""
    found = []
    with tar.open("rb") as stream:
        for row in rows.to_dict("records"):
            stream.seek(row["offset"])
            label = None if pd.isna(row["label"]) else row["label"]
            image = stream.read(row["size"])
            about = (label, row["group"], row["source"])
            found.append(Sample(row["split"], row["key"], row["ext"], image, *about))
    return found


def without(folder: Path, out: Path, keys: Collection[str]) -> list[str]:
    """Copy shards into an existing folder, less some samples; returns which shards held them.

    Only these are written again, under their names; one that held nothing else is gone. The others
    are linked, or copied where that is not possible, byte for byte.
    """
    index = pd.read_parquet(folder / "index.parquet")
    about = artifacts.read_json(folder / "index.json")
    gone = index["key"].isin(keys)
    hit = sorted(index.loc[gone, "shard"].unique())
    parts, sums = [], {k: v for k, v in about["shards"].items() if k not in hit}
    for name in index["shard"].unique():  # in their order
        rows = index[(index["shard"] == name) & ~gone]
        if name not in hit:
            artifacts.link(folder / name, out / name)
        elif len(rows):
            shard, offsets = _Shard(out / name), []
            for sample in _stored(folder / name, rows):
                offsets.append(shard.add(sample, sample.about()))
            sums[name] = shard.close()
            rows = rows.assign(offset=offsets)
        parts.append(rows)
    frame = pd.concat(parts, ignore_index=True)
    _finish(out, frame, sums, about["max_side"], about["channels"])
    return hit
