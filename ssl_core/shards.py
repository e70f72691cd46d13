"""WebDataset shards: byte-deterministic tars, an index of byte offsets, and their reader.

Any WebDataset reader can stream the tars. The index adds random access by plain file reads, so
the order of training samples is a pure function of (seed, step) and a resumed run sees exactly
the samples it would have seen.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from . import artifacts, bands
from .errors import HeadwaterError
from .parallel import ordered_map

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
BLOCK = tarfile.BLOCKSIZE  # 512: a header, and the unit that data is padded to
COLUMNS = ("split", "shard", "key", "ext", "offset", "size", "label", "group", "source")
WINDOW = 8  # shards whose samples are shuffled together: bounds how far reads spread
CACHE_BYTES = 256 * 2**20
WHITE = 255


def canvas(pixels: Pixels, side: int) -> Pixels:
    """Fit an image into a white square: (H, W, C) -> (C, side, side), whole and in proportion.

    A centre crop would cut off what lies at the edge before training's random crop has chosen,
    and a plain resize would distort. White, 255 in every band, is what transparency is flattened
    on as well.
    """
    height, width, channels = pixels.shape
    scale = side / max(height, width)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    if fitted != (width, height):
        pixels = bands.resize(pixels, fitted)
    out = np.full((channels, side, side), WHITE, dtype=np.uint8)
    left, top = (side - fitted[0]) // 2, (side - fitted[1]) // 2
    out[:, top : top + fitted[1], left : left + fitted[0]] = pixels.transpose(2, 0, 1)
    return out


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
    path: str

    def about(self) -> bytes:
        """The sample's JSON member."""
        record = {n: getattr(self, n) for n in ("label", "group", "source", "path")}
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
    frame.to_parquet(folder / "index.parquet", engine="pyarrow", index=False)
    classes = sorted(frame["label"].dropna().unique().tolist())
    about = {"classes": classes, "max_side": max_side, "channels": channels}
    artifacts.write_json(folder / "index.json", about | {"shards": writer.shards})
    return frame


def _about(folder: Path) -> dict[str, Any]:
    """index.json."""
    path = folder / "index.json"
    if not path.exists():
        raise HeadwaterError(folder, "holds no shards (index.json is missing)", "run stage shard")
    found: dict[str, Any] = artifacts.read_json(path)
    return found


def verify(folder: Path) -> int:
    """Compare every shard with its recorded size and sha256; return how many there are.

    Raises:
        HeadwaterError: a shard is missing or altered; the message names it.
    """
    shards = _about(folder)["shards"]
    for name, known in shards.items():
        path = folder / name
        if not path.exists():
            raise HeadwaterError(path, "shard is missing", "run stage shard again, or dvc pull")
        # The size first: it finds a truncated file without reading it.
        same = path.stat().st_size == known["bytes"]
        if not same or artifacts.sha256_file(path) != known["sha256"]:
            rule = "shard does not match its checksum in index.json"
            raise HeadwaterError(path, rule, "run stage shard again, or dvc pull")
    return len(shards)


class ShardReader:
    """Random access to the samples of one split, as uint8 squares of one size.

    ``rank`` of ``world`` readers take disjoint slices of each global batch. Decoded images are
    cached up to ``cache_bytes``: always the same first rows of the split, since a cache of
    recent ones is useless when each epoch visits every sample once.

    Images have ``channels``, those of the shards; with ``rgb`` always three (``bands.to_rgb``).
    """

    def __init__(
        self,
        folder: Path,
        split: str | None,
        image_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        cache_bytes: int = CACHE_BYTES,
        rgb: bool = False,
    ) -> None:
        stored = int(_about(folder).get("channels", 3))
        self.channels = 3 if rgb else stored
        self.folder, self.side, self.seed = folder, image_size, seed
        self.rank, self.world, self.threads = rank, world, threads
        frame = pd.read_parquet(folder / "index.parquet")
        chosen = frame if split is None else frame[frame["split"] == split]
        self.frame = chosen.reset_index(drop=True)
        if not len(self.frame):
            rule = f"holds no image of split {split!r}"
            raise HeadwaterError(folder, rule, "check data.test_fraction and the curate stage")
        self._places = list(self.frame[["shard", "key", "offset", "size"]].itertuples(index=False))
        shape = (self.channels, image_size, image_size)
        cached = min(len(self.frame), cache_bytes // (self.channels * image_size**2))
        self._cache = np.empty((cached, *shape), dtype=np.uint8)
        self._ready = np.zeros(len(self.frame), dtype=np.bool_)
        self._orders: dict[int, Ints] = {}

    def __len__(self) -> int:
        return len(self.frame)

    def order(self, epoch: int) -> Ints:
        """Permutation (N,) of all samples for one epoch, a pure function of (seed, epoch).

        Shards are shuffled, then samples within windows of ``WINDOW`` shards.
        """
        if epoch in self._orders:
            return self._orders[epoch]
        rng = np.random.default_rng([self.seed, epoch])
        codes, shards = pd.factorize(self.frame["shard"])
        place = rng.permutation(len(shards))[codes]  # (N,) where each sample's shard went
        mixed = rng.permutation(len(codes))
        order = mixed[np.argsort(place[mixed] // WINDOW, kind="stable")]
        recent = list(self._orders.items())[-1:]  # a batch may touch two epochs
        self._orders = dict([*recent, (epoch, order)])
        return order

    def indices(self, step: int, batch_size: int) -> Ints:
        """This rank's rows (B,) at a global step. Epochs follow one another without a gap."""
        first = (step * self.world + self.rank) * batch_size
        positions = np.arange(first, first + batch_size)
        epochs, places = np.divmod(positions, len(self))
        parts = [self.order(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def batches(
        self, batch_size: int, start: int = 0, steps: int | None = None
    ) -> Generator[tuple[Ints, Tensor], None, None]:
        """Yield ``steps`` batches (endless if None) of rows (B,) and images uint8 (B, C, S, S).

        Batch k is a pure function of (seed, k, rank, world): ``start=k`` continues as if the
        first k batches had been read. Batches run across epoch borders, so none is short and
        no sample is lost or doubled within an epoch.
        """
        numbers = count(start) if steps is None else range(start, start + steps)
        return self._stream(self.indices(step, batch_size) for step in numbers)

    def sequential(self, batch_size: int) -> Generator[tuple[Ints, Tensor], None, None]:
        """Yield all samples once, in index order; the last batch may be short."""
        rows = np.arange(len(self))
        return self._stream(rows[i : i + batch_size] for i in range(0, len(rows), batch_size))

    def take(self, rows: Ints) -> Tensor:
        """The images of some rows (B,), uint8 (B, C, S, S)."""
        return self._load(np.asarray(rows, np.int64))

    def _stream(self, plan: Iterable[Ints]) -> Generator[tuple[Ints, Tensor], None, None]:
        ahead = max(2, self.threads)
        return ordered_map(lambda rows: (rows, self._load(rows)), plan, self.threads, ahead)

    def _load(self, rows: Ints) -> Tensor:
        out = np.empty((len(rows), self.channels, self.side, self.side), dtype=np.uint8)
        ready = self._ready[rows]
        out[ready] = self._cache[rows[ready]]
        for place in np.flatnonzero(~ready):
            row = int(rows[place])
            out[place] = self._decode(row)
            if row < len(self._cache):
                self._cache[row] = out[place]
                self._ready[row] = True  # set last: another thread may look at any moment
        import torch  # here: writing shards needs no torch, and its import takes seconds

        return torch.from_numpy(out)

    def _decode(self, row: int) -> Pixels:
        shard, key, offset, size = self._places[row]
        try:
            with (self.folder / shard).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset)
            if bands.is_array(data):
                pixels = bands.unpack(data)
                return canvas(bands.to_rgb(pixels) if self.channels == 3 else pixels, self.side)
            image = Image.open(io.BytesIO(data))
            image.draft("RGB", (self.side, self.side))  # JPEG: decode at 1/2, 1/4 where enough
            return canvas(np.asarray(image.convert("RGB")), self.side)
        except (OSError, SyntaxError, ValueError) as error:
            fix = "run stage shard again, or dvc pull"
            raise HeadwaterError(f"{shard}:{key}", f"cannot be read ({error})", fix) from error
