"""The reader's order, positions and replacements against its promises."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted_shards import MAX_BYTES, SIDE, samples

from ssl_core import decoding, rejects, shards
from ssl_core import reader as reader_module
from ssl_core.errors import HeadwaterError
from ssl_core.parallel import look_ahead, ordered_map
from ssl_core.reader import ShardReader

N = 70  # samples of the train split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    shards.write(path, samples(), MAX_BYTES, 50)
    return path


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    reader = ShardReader(folder, "train", SIDE, seed=3)
    orders = [reader.order(e) for e in (0, 1, 0, 5, 1)]
    for order in orders:
        assert sorted(order) == list(range(70))
    assert (orders[0] == orders[2]).all()
    assert (orders[1] == orders[4]).all()
    assert (orders[0] != orders[1]).any()
    other_rank = ShardReader(folder, "train", SIDE, seed=3, rank=1, world=2)
    assert (other_rank.order(5) == orders[3]).all()
    assert (ShardReader(folder, "train", SIDE, seed=4).order(0) != orders[0]).any()


def test_order_keeps_to_windows_of_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "WINDOW", 2)
    reader = ShardReader(folder, "train", SIDE)
    visited = reader.frame["shard"].to_numpy()[reader.order(0)]
    sizes = Counter(visited)
    assert len(sizes) >= 4
    place, mixed = 0, False
    while place < len(visited):
        last = place + 1
        while len(set(visited[place : last + 1])) <= 2 and last < len(visited):
            last += 1
        window = visited[place:last]
        names = set(window)
        assert all(sum(window == n) == sizes[n] for n in names)  # whole shards, not parts
        mixed |= (window[1:] != window[:-1]).sum() > 1
        place = last
    assert mixed


@pytest.mark.parametrize(("world", "size"), [(1, 8), (2, 5), (3, 16), (1, 100)])
def test_each_epoch_visits_every_sample_once_over_all_ranks(
    folder: Path, world: int, size: int
) -> None:
    readers = [ShardReader(folder, "train", SIDE, rank=r, world=world) for r in range(world)]
    steps = 70 * 3 // (size * world) + 1
    streams = [list(r.batches(size, steps=steps)) for r in readers]
    assert all(len(rows) == size for stream in streams for rows, _ in stream)
    flat = np.concatenate([streams[r][k][0] for k in range(steps) for r in range(world)])
    for epoch in range(3):
        assert sorted(flat[epoch * 70 : (epoch + 1) * 70]) == list(range(70))


def test_resuming_equals_skipping_and_two_runs_agree(folder: Path) -> None:
    def make(cache: int) -> ShardReader:
        return ShardReader(
            folder, "train", SIDE, seed=1, rank=1, world=2, threads=3, cache_bytes=cache
        )

    whole = list(make(0).batches(9, steps=14))
    again = list(make(2**20).batches(9, steps=14))  # with a cache
    part = list(islice(make(20 * 3 * SIDE**2).batches(9, start=6), 8))  # part of it cached
    assert len(part) == 8
    for (rows, images), (rows2, images2) in zip(whole, again, strict=True):
        assert (rows == rows2).all()
        assert torch.equal(images, images2)
    for (rows, images), (rows2, images2) in zip(whole[6:], part, strict=True):
        assert (rows == rows2).all()
        assert torch.equal(images, images2)


def test_images_are_the_stored_ones_on_a_white_square(folder: Path) -> None:
    by_key = {s.key: s for s in samples()}
    reader = ShardReader(folder, None, SIDE, threads=2)
    rows, images = zip(*reader.sequential(32), strict=True)
    assert [len(r) for r in rows] == [32, 32, 26]
    assert np.concatenate(rows).tolist() == list(range(90)) == list(range(len(reader)))
    stack = torch.cat(images).numpy()
    assert stack.shape == (90, 3, SIDE, SIDE)
    assert stack.dtype == np.uint8
    exact = 0
    for row, key in enumerate(reader.frame["key"]):
        pixels = np.asarray(Image.open(io.BytesIO(by_key[key].image)).convert("RGB"))
        if pixels.shape == (SIDE, SIDE, 3):
            exact += 1
            assert (stack[row] == pixels.transpose(2, 0, 1)).all()
        elif by_key[key].ext == "png":  # a large JPEG is decoded at a fraction, so differs
            assert (stack[row] == decoding.canvas(pixels, SIDE)).all()
    assert exact > 30


def alive() -> int:
    return sum(t.name.startswith("headwater") for t in threading.enumerate())


def test_closing_the_stream_stops_its_threads(folder: Path) -> None:
    reader = ShardReader(folder, "train", SIDE)
    stream = reader.batches(4)
    next(stream)
    assert alive() >= 1
    stream.close()  # type: ignore[attr-defined]
    assert alive() == 0


def test_batches_are_read_ahead_but_not_without_bound() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    stream = ordered_map(work, iter(range(10_000)), threads=2, ahead=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    time.sleep(0.1)
    assert 5 <= len(begun) <= 7
    stream.close()  # type: ignore[attr-defined]


def test_work_that_has_not_begun_is_dropped_at_the_close() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.02)

    stream = ordered_map(work, range(100), threads=2, ahead=60)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(begun) < 10


@pytest.mark.parametrize(("room", "decodes"), [(70, 70), (20, 220), (6, 280), (0, 280)])
def test_an_image_in_the_cache_is_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, room: int, decodes: int
) -> None:
    reader = ShardReader(folder, "train", SIDE, threads=1, cache_bytes=room * 3 * SIDE**2)
    decode, decoded = decoding.decode, []
    monkeypatch.setattr(decoding, "decode", lambda *a: decoded.append(a) or decode(*a))
    assert len(list(reader.batches(10, steps=28))) == 28  # four epochs
    assert len(decoded) == decodes  # 6 of 70 are not worth a cache


@pytest.mark.parametrize("end", [100, 0])
def test_a_damaged_sample_is_named_and_the_threads_end(tmp_path: Path, end: int) -> None:
    shards.write(tmp_path, samples(), 2**20, 50)
    reader = ShardReader(tmp_path, "train", SIDE)
    row = reader.frame.iloc[33]
    file = tmp_path / row["shard"]
    data = bytearray(file.read_bytes())
    data[row["offset"] + end : row["offset"] + row["size"]] = bytes(int(row["size"]) - end)
    file.write_bytes(data)
    with pytest.raises(HeadwaterError, match=f"{row['shard']}:{row['key']}"):
        list(reader.sequential(8))
    assert alive() == 0


def test_a_missing_split_is_said(folder: Path) -> None:
    with pytest.raises(HeadwaterError, match="no image of split 'val'"):
        ShardReader(folder, "val", SIDE)


# ---- positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(30))
def test_a_run_cut_anywhere_goes_on_with_other_ranks_and_batches(folder: Path, case: int) -> None:
    rng = np.random.default_rng(case)
    seen: list[int] = []
    while len(seen) < 3 * N:
        world, size = int(rng.integers(1, 6)), int(rng.integers(1, 40))
        start, offset = divmod(len(seen), world * size)
        if rng.random() < 0.5:  # a run that counts its steps on, for its schedules
            start = int(rng.integers(0, 50))
            offset = len(seen) - start * world * size
        readers = [ShardReader(folder, "train", SIDE, rank=r, world=world) for r in range(world)]
        for step in range(start, start + int(rng.integers(1, 6))):  # killed after so many steps
            seen += [int(i) for r in readers for i in r.indices(step, size, offset)]
    whole = ShardReader(folder, "train", SIDE)
    for epoch in range(3):
        part = seen[epoch * N : (epoch + 1) * N]
        assert sorted(part) == list(range(N))
        assert part == whole.order(epoch).tolist()


def test_batches_are_those_of_indices_from_any_offset(folder: Path) -> None:
    reader = ShardReader(folder, "train", SIDE, rank=1, world=2)
    found = list(reader.batches(9, start=4, steps=6, offset=-31))
    for step, (rows, images) in enumerate(found, 4):
        assert (rows == reader.indices(step, 9, -31)).all()
        assert torch.equal(images, reader.take(rows))
    with pytest.raises(HeadwaterError, match="lies before the first sample"):
        next(reader.batches(9, start=0, offset=-31))


def test_shards_are_announced_before_they_are_needed_and_not_without_bound() -> None:
    told: list[int] = []
    plan = iter([[i // 3, i // 3 + 1] for i in range(60)])
    seen = []
    for item in look_ahead(plan, lambda parts: parts, told.append, most=5, longest=100):
        seen.append(item)
        assert set(item) <= set(told)
        assert len(set(told)) <= item[0] + 6
    assert seen == [[i // 3, i // 3 + 1] for i in range(60)]
    assert told == list(range(21))  # each once, in order
    pulled: list[int] = []
    endless = (pulled.append(i) or i for i in range(10**9))
    next(look_ahead(endless, lambda _: [0], lambda _: None, most=5, longest=7))
    assert len(pulled) == 7


def test_a_cached_split_is_not_planned_epochs_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "WINDOW", 1)
    reader, asked = ShardReader(folder, "train", SIDE), []
    order = reader.order
    monkeypatch.setattr(reader, "order", lambda epoch: asked.append(epoch) or order(epoch))
    for step, _ in enumerate(reader.batches(10, steps=35)):  # five epochs, all read in the first
        assert max(asked) <= step // 7 + 2


# ---- corrupt samples ----------------------------------------------------------------------------


def damage(path: Path, keys: list[int], cut: int = 0) -> list[str]:
    """Write shards and spoil the images of some train rows; returns their keys."""
    shards.write(path, samples(), MAX_BYTES, 50)
    frame = ShardReader(path, "train", SIDE).frame
    for row in frame.iloc[keys].itertuples():
        data = bytearray((path / row.shard).read_bytes())
        data[row.offset + cut : row.offset + row.size] = bytes(int(row.size) - cut)
        (path / row.shard).write_bytes(data)
    return frame["key"].iloc[keys].tolist()


@pytest.mark.parametrize("cut", [0, 60])
def test_a_corrupt_sample_is_listed_and_replaced_by_its_successor(tmp_path: Path, cut: int) -> None:
    bad = [3, 4, 30, 69]
    keys = damage(tmp_path, bad, cut)
    file = tmp_path / "work" / "rejects.jsonl"
    reader = ShardReader(tmp_path, "train", SIDE, seed=2, rejects=file)
    found = list(reader.batches(10, steps=14))  # two epochs
    rows = np.concatenate([r for r, _ in found])
    images = torch.cat([i for _, i in found])
    for epoch in range(2):
        order = reader.order(epoch).tolist()
        expected = []
        for place in range(N):  # the oracle: walk on until a row is not bad
            while order[place % N] in bad:
                place += 1
            expected.append(order[place % N])
        assert rows[epoch * N : (epoch + 1) * N].tolist() == expected
    clean = tmp_path / "clean"
    clean.mkdir()
    shards.write(clean, samples(), MAX_BYTES, 50)
    assert torch.equal(images, ShardReader(clean, "train", SIDE).take(rows))
    assert sorted(r["key"] for r in reader.rejects) == sorted(keys)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == reader.rejects  # each once, over both epochs
    assert all(set(line) == {"key", "shard", "reason"} for line in lines)


def test_other_ranks_and_a_resumed_run_see_the_same_replacements(tmp_path: Path) -> None:
    damage(tmp_path, [3, 4, 30, 69])
    file = tmp_path / "rejects.jsonl"
    alone = ShardReader(tmp_path, "train", SIDE, rejects=file)
    whole = torch.cat([i for _, i in alone.batches(10, steps=14)])
    two = [ShardReader(tmp_path, "train", SIDE, rank=r, world=2, rejects=file) for r in range(2)]
    streams = [r.batches(7, steps=10) for r in two]
    pieces = [next(s)[1] for _ in range(10) for s in streams]
    assert torch.equal(torch.cat(pieces), whole)
    late = ShardReader(tmp_path, "train", SIDE, rejects=file)
    assert len(late.rejects) == 4
    tail = torch.cat([i for _, i in late.batches(5, start=4, offset=15, steps=21)])
    assert torch.equal(tail, whole[35:])
    assert len(file.read_text().splitlines()) == 4


def test_too_many_corrupt_samples_end_the_run_and_are_named(tmp_path: Path) -> None:
    keys = damage(tmp_path, list(range(11)))
    assert rejects.LEAST == 10
    reader = ShardReader(tmp_path, "train", SIDE, rejects=tmp_path / "r.jsonl")
    with pytest.raises(HeadwaterError, match=r"11 corrupt samples: more than the 10") as caught:
        list(reader.batches(10, steps=14))
    assert sum(key in str(caught.value) for key in keys) == rejects.SHOWN
    assert alive() == 0
    # What two ranks find counts together, if they share the list.
    two = [
        ShardReader(tmp_path, "train", SIDE, rank=r, world=2, rejects=tmp_path / "two.jsonl")
        for r in range(2)
    ]
    with pytest.raises(HeadwaterError, match=r"11 corrupt samples"):
        for _ in zip(*(r.batches(5, steps=7) for r in two), strict=True):
            pass


def test_the_limit_is_a_share_of_a_large_split() -> None:
    large = rejects.Rejects(5000, None)
    for i in range(50):
        large.add(f"k{i}", "s", "x")
        large.add(f"k{i}", "s", "x")
    assert len(large.found) == 50
    with pytest.raises(HeadwaterError, match="51 corrupt"):
        large.add("k50", "s", "x")


def test_a_torn_line_in_the_list_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"key": "a", "shard": "s", "reason": "x"}\n{"key": "b", "sh')
    found = rejects.Rejects(100, file)
    found.add("c", "s", "y")
    assert [r["key"] for r in found.found] == ["a", "c"]
    assert [r["key"] for r in rejects.Rejects(100, file).found] == ["a", "c"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    few = [s for s in samples() if s.split == "train"][:4]
    shards.write(tmp_path, few, 2**20, 50)
    tar = tmp_path / "train-000000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(HeadwaterError, match="4 samples: none can be read"):
        next(ShardReader(tmp_path, "train", SIDE).batches(2))


def test_a_shard_cut_short_loses_only_its_end(tmp_path: Path) -> None:
    shards.write(tmp_path, samples(), MAX_BYTES, 50)
    reader = ShardReader(tmp_path, "train", SIDE)
    last = reader.frame.iloc[-1]
    file = tmp_path / last["shard"]
    file.write_bytes(file.read_bytes()[: last["offset"] + 10])
    assert sum(len(r) for r, _ in reader.batches(10, steps=7)) == N
    (reject,) = reader.rejects
    assert reject["key"] == last["key"]
    assert "bytes early" in reject["reason"]
