"""Samples of the shards as uint8 batches, in an order that any run can take up at any place.

The order is a pure function of the seed. So a position, a number of samples, is all the state
there is: a resumed run sees exactly the samples that it would have seen, whatever the number of
its ranks or the size of its batches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import decoding, store
from .decoding import Corrupt, Pixels
from .errors import HeadwaterError
from .parallel import look_ahead, ordered_map
from .rejects import Rejects

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]
Batch = tuple[Ints, "Tensor"]
Planned = tuple[Ints, Ints | None]  # rows, and their positions if others may take their place
WINDOW = 8  # shards whose samples are shuffled together: bounds how far reads spread
CACHE_BYTES = 256 * 2**20
CACHE_LEAST = 0.1  # of a split; to hold less of it saves too little for its memory
FETCHERS = 4  # shards fetched at a time
AHEAD = 2**17  # samples looked ahead for shards to fetch, at most


class ShardReader:
    """Random access to the samples of one split, as uint8 squares of one size.

    ``folder`` is a path or an ``s3://bucket/prefix`` address (``store.py``); shards are read ahead,
    some two windows of ``WINDOW``.

    ``rank`` of ``world`` readers take disjoint slices of each global batch. Decoded images are
    cached up to ``cache_bytes``: always the same first rows of the split, since a cache of
    recent ones is useless when each epoch visits every sample once. For a split of which it would
    hold less than ``CACHE_LEAST`` there is no cache.

    Images have ``channels``, those of the shards; with ``rgb`` always three (``bands.to_rgb``).

    A sample that cannot be decoded is left out of :meth:`batches` and listed in ``rejects``, also
    in the file of that name if one is given, until there are too many (``rejects.py``).

    Raises:
        HeadwaterError: no shards or no image of this split; S3 does not answer.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str | None,
        image_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        cache_bytes: int = CACHE_BYTES,
        rgb: bool = False,
        rejects: Path | None = None,
    ) -> None:
        self.store = store.at(folder, keep=3 * WINDOW)  # a batch may begin a third window
        self.stored = int(self.store.about.get("channels", 3))
        self.channels = 3 if rgb else self.stored
        self.classes: list[str] = self.store.about["classes"]
        self.side, self.seed = image_size, seed
        self.rank, self.world, self.threads = rank, world, threads
        self.frame = self.store.table(split)
        if not len(self.frame):
            rule = f"holds no image of split {split!r}"
            raise HeadwaterError(folder, rule, "check data.test_fraction and the curate stage")
        codes, names = pd.factorize(self.frame["shard"])
        self._shards, self._names = codes.astype(np.int32), [str(n) for n in names]
        self._offsets = self.frame["offset"].to_numpy(np.int64)
        self._sizes = self.frame["size"].to_numpy(np.int64)
        self._rejects = Rejects(len(self), rejects)
        self._cache = self._new_cache(cache_bytes)
        self._ready = np.zeros(len(self.frame), dtype=np.bool_)
        self._orders: dict[int, Ints] = {}

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def rejects(self) -> list[dict[str, Any]]:
        """Samples left out so far, here or (by the file) elsewhere: key, shard and reason."""
        return list(self._rejects.found)

    def _new_cache(self, cache_bytes: int) -> Pixels:
        shape = (self.side, self.side, self.channels)
        held = min(len(self), cache_bytes // int(np.prod(shape)))
        held = held if held >= CACHE_LEAST * len(self) else 0
        return np.empty((held, *shape), dtype=np.uint8).transpose(0, 3, 1, 2)

    # ---- the order -------------------------------------------------------------------------

    def order(self, epoch: int) -> Ints:
        """Permutation (N,) of all samples for one epoch, a pure function of (seed, epoch).

        Shards are shuffled, then samples within windows of ``WINDOW`` shards: a batch mixes
        samples of ``WINDOW`` shards that were drawn at random. Writing has mixed what is in one
        (``stages/shard.py`` sorts by checksum), so a window is a random part of the split.
        """
        known = self._orders.get(epoch)
        if known is not None:
            return known
        rng = np.random.default_rng([self.seed, epoch])
        place = rng.permutation(len(self._names))[self._shards]  # (N,) where a sample's shard went
        mixed = rng.permutation(len(self))
        order = mixed[np.argsort(place[mixed] // WINDOW, kind="stable")]
        recent = list(self._orders.items())[-1:]  # a batch may touch two epochs
        self._orders = dict([*recent, (epoch, order)])
        return order

    def positions(self, step: int, batch_size: int, offset: int = 0) -> Ints:
        """Where this rank's batch of a global step stands in the sequence of all epochs: (B,).

        Sample i of the batch has position ``offset + (step * world + rank) * batch_size + i``, so
        the ``world`` batches of a step follow one another, and steps too.
        """
        first = offset + (step * self.world + self.rank) * batch_size
        if first < 0:
            rule = "lies before the first sample"
            raise HeadwaterError(f"offset {offset} at step {step}", rule, "raise the offset")
        return np.arange(first, first + batch_size)

    def rows_at(self, positions: Ints) -> Ints:
        """The rows (B,) at some positions: ``order(e)[p]`` where e, p = divmod(position, N)."""
        epochs, places = np.divmod(positions, len(self))
        rows = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self.order(int(epoch))[places[here]]
        return rows

    def indices(self, step: int, batch_size: int, offset: int = 0) -> Ints:
        """This rank's rows (B,) at a global step. Epochs follow one another without a gap."""
        return self.rows_at(self.positions(step, batch_size, offset))

    # ---- streams ---------------------------------------------------------------------------

    def batches(
        self, batch_size: int, start: int = 0, steps: int | None = None, offset: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield ``steps`` batches (endless if None) of rows (B,) and images uint8 (B, C, S, S).

        Batch k holds the samples at ``positions(k, batch_size, offset)``, so it is a pure function
        of (seed, k, rank, world, batch_size, offset) and ``start=k`` continues as if the first k
        batches had been read. Batches run across epoch borders, so none is short and no sample
        is lost or doubled within an epoch.

        To go on after C samples (of all ranks together) with another ``world`` or
        ``batch_size``, choose ``start`` and ``offset`` so that
        ``offset + start * world * batch_size == C``, for instance
        ``start, offset = divmod(C, world * batch_size)``. ``offset`` may be negative if C is not.

        The place of a corrupt sample is taken by the next readable one of its epoch's order (the
        first follows the last), so that batches stay full; that sample is seen twice in the
        epoch. This depends on the position alone: other ranks or batch sizes see the same. Rows
        name the images that are really there.

        Raises:
            HeadwaterError: too many corrupt samples, or shards that cannot be read.
        """
        numbers = count(start) if steps is None else range(start, start + steps)
        plan = (self.positions(step, batch_size, offset) for step in numbers)
        pairs = ((self.rows_at(p), p) for p in plan)
        return self._stream(pairs, batch_size)

    def sequential(self, batch_size: int) -> Generator[Batch, None, None]:
        """Yield all samples once, in index order; the last batch may be short.

        Raises:
            HeadwaterError: a sample is corrupt, or shards cannot be read.
        """
        rows = np.arange(len(self))
        plan = ((rows[i : i + batch_size], None) for i in range(0, len(rows), batch_size))
        return self._stream(plan, batch_size)

    def take(self, rows: Ints) -> Tensor:
        """The images of some rows (B,), uint8 (B, C, S, S).

        Raises:
            HeadwaterError: a sample is corrupt, or shards cannot be read.
        """
        return self._load(np.asarray(rows, np.int64), None, None)[1]

    def _stream(self, plan: Iterable[Planned], batch_size: int) -> Generator[Batch, None, None]:
        stop = threading.Event()
        fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="headwater-fetch")

        def begin(code: int) -> None:  # an error is met again, and raised, by who needs the shard
            fetchers.submit(self.store.fetch, self._names[code], stop)

        announced, ahead = self._announced(plan, batch_size, begin), max(2, self.threads)
        loaded = ordered_map(lambda p: self._load(*p, stop), announced, self.threads, ahead)
        try:
            for batch in loaded:  # noqa: UP028 ("yield from" would close it, and wait, first)
                yield batch
        finally:
            stop.set()  # threads that fetch or wait for S3 give up
            loaded.close()
            fetchers.shutdown(wait=True, cancel_futures=True)

    def _announced(
        self, plan: Iterable[Planned], batch_size: int, begin: Callable[[int], None]
    ) -> Iterable[Planned]:
        """The plan, whose shards are announced two windows ahead."""
        if len(self._names) <= 2 * WINDOW:
            for code in range(len(self._names)):
                begin(code)
            return plan

        def shards(planned: Planned) -> list[int]:
            unread = planned[0][~self._ready[planned[0]]]
            return [int(code) for code in np.unique(self._shards[unread])]

        longest = min(AHEAD, len(self)) // (batch_size * self.world)  # within one epoch
        return look_ahead(plan, shards, begin, 2 * WINDOW, max(1, longest))

    # ---- reading ---------------------------------------------------------------------------

    def _load(self, rows: Ints, positions: Ints | None, stop: threading.Event | None) -> Batch:
        """Rows and images; with ``positions``, other rows in the place of corrupt ones."""
        # Channels last in memory, as images are decoded and as augmentation reads them.
        out = np.empty((len(rows), self.side, self.side, self.channels), dtype=np.uint8)
        out = out.transpose(0, 3, 1, 2)  # (B, S, S, C) -> (B, C, S, S)
        ready = self._ready[rows]
        out[ready] = self._cache[rows[ready]]
        missing = np.flatnonzero(~ready)
        corrupt: dict[int, str] = {}  # place -> reason
        codes = self._shards[rows[missing]]
        for code in np.unique(codes):
            with self.store.open(self._names[code], stop) as handle:
                for place in missing[codes == code]:
                    try:
                        out[place] = self._image(handle, int(rows[place]))
                    except Corrupt as error:
                        corrupt[int(place)] = str(error)
        for place, reason in sorted(corrupt.items()):
            self._refuse(int(rows[place]), reason, positions is not None)
            rows[place], out[place] = self._successor(int(positions[place]), stop)  # type: ignore[index]
        import torch  # here: its import takes seconds

        return rows, torch.from_numpy(out)

    def _refuse(self, row: int, reason: str, replace: bool) -> None:
        key, shard = str(self.frame["key"].iloc[row]), self._names[self._shards[row]]
        if not replace:
            fix = "run stage shard again, or dvc pull"
            raise HeadwaterError(f"{shard}:{key}", f"cannot be read ({reason})", fix)
        self._rejects.add(key, shard, reason)

    def _successor(self, position: int, stop: threading.Event | None) -> tuple[int, Pixels]:
        """The next readable sample of the epoch's order, and its image."""
        epoch, place = divmod(position, len(self))
        for row in np.roll(self.order(epoch), -place)[1:].tolist():
            try:
                with self.store.open(self._names[self._shards[row]], stop) as handle:
                    return row, self._image(handle, row)
            except Corrupt as error:
                self._refuse(row, str(error), replace=True)
        fix = "run stage shard again, or dvc pull"
        raise HeadwaterError(f"{len(self)} samples", "none can be read", fix)

    def _image(self, handle: int, row: int) -> Pixels:
        """Decode one sample: (C, S, S).

        Raises:
            Corrupt: as it says.
            HeadwaterError: the disk fails.
        """
        size = int(self._sizes[row])
        try:
            data = os.pread(handle, size, int(self._offsets[row]))
        except OSError as error:  # of the disk, not of the sample
            shard, fix = self._names[self._shards[row]], "check the disk, then run again"
            raise HeadwaterError(shard, f"cannot be read ({error.strerror})", fix) from None
        if len(data) < size:
            raise Corrupt(f"the shard ends {size - len(data)} bytes early")
        pixels = decoding.decode(data, self.side, self.channels, self.stored)
        if row < len(self._cache):
            self._cache[row] = pixels
            self._ready[row] = True  # set last: another thread may look at any moment
        return pixels
