"""Shards on S3: a real HTTP server (moto), and one that breaks off, refuses and lies on demand."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted_shards import MAX_BYTES, SIDE, samples

from ssl_core import reader as reader_module
from ssl_core import s3, shards, store
from ssl_core.artifacts import read_json
from ssl_core.errors import HeadwaterError
from ssl_core.reader import ShardReader

URL = "s3://lake/set"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    shards.write(path, samples(), MAX_BYTES // 2, 50)
    return path


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(s3, "PAUSE", 0.01)
    s3._client.cache_clear()
    yield
    s3._client.cache_clear()


@pytest.fixture
def moto(folder: Path, bucket: Any) -> Any:
    """A client of a bucket that holds the folder's files."""
    for file in folder.iterdir():
        bucket.put_object(Bucket="lake", Key=f"set/{file.name}", Body=file.read_bytes())
    return bucket


class Faulty:
    """Serves a folder as s3://lake/set; ``fault(name, asked, number)`` may spoil an answer."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, int]] = []  # (name, first byte)
        self.fault: Callable[[str, int], str] = lambda name, number: ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.split("/")[-1].split("?")[0]
                start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0])[0])
                outer.asked.append((name, start))
                outer.answer(self, name, start, (folder / name).read_bytes())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def answer(self, to: BaseHTTPRequestHandler, name: str, start: int, whole: bytes) -> None:
        kind = self.fault(name, sum(n == name for n, _ in self.asked))
        body = whole[start:]
        if kind == "503" or (start and not body):
            to.send_error(503 if kind == "503" else 416)
            return
        if kind == "altered":
            body = body[:-5000] + b"!" + body[-4999:]
        to.send_response(206 if start else 200)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def faulty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    server = Faulty(folder)
    host, port = server.server.server_address[:2]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host!s}:{port}")
    yield server
    s3.client().close()
    server.close()


def equal(folder: Path, url: Path | str = URL, steps: int = 9) -> None:
    """The same batches from S3 as from the folder."""
    here = ShardReader(folder, "train", SIDE, seed=5).batches(16, steps=steps)
    there = ShardReader(url, "train", SIDE, seed=5, threads=3).batches(16, steps=steps)
    for (rows, images), (rows2, images2) in zip(here, there, strict=True):
        assert (rows == rows2).all()
        assert torch.equal(images, images2)


def alive() -> int:
    return sum(t.name.startswith("headwater") for t in threading.enumerate())


# ---- what is there ------------------------------------------------------------------------------


def test_samples_on_s3_are_those_of_the_folder(folder: Path, moto: Any) -> None:
    equal(folder)
    equal(folder, Path(URL))  # a Path has s3:/ with one stroke
    for key in ("index.json", "index.parquet"):
        moto.copy_object(Bucket="lake", Key=key, CopySource=f"lake/set/{key}")
    assert len(ShardReader("s3://lake", "train", SIDE)) == 70  # no prefix
    whole, part = (ShardReader(p, None, SIDE) for p in (folder, URL))
    assert whole.classes == part.classes
    pd.testing.assert_frame_equal(whole.frame, part.frame)
    assert torch.equal(whole.take(np.arange(0, 90, 7)), part.take(np.arange(0, 90, 7)))
    assert len(list(part.sequential(32))) == 3
    assert alive() == 0
    with pytest.raises(HeadwaterError, match="no image of split 'val'"):
        ShardReader(URL, "val", SIDE)


def test_verify_finds_what_is_missing_or_cut_short(folder: Path, moto: Any) -> None:
    assert store.verify(URL) == len(list(folder.glob("*.tar"))) > 8
    name = "train-000002.tar"
    whole = (folder / name).read_bytes()
    moto.put_object(Bucket="lake", Key=f"set/{name}", Body=whole[:-1024])
    with pytest.raises(HeadwaterError, match=rf"{name}: has 1\d,\d\d\d bytes, index.json says"):
        store.verify(URL)
    with pytest.raises(HeadwaterError, match=rf"{name}: has 1\d,\d\d\d bytes, index.json says"):
        list(ShardReader(URL, "train", SIDE).batches(16, steps=9))
    moto.delete_object(Bucket="lake", Key=f"set/{name}")
    with pytest.raises(HeadwaterError, match=f"{name}: shard is missing"):
        store.verify(URL)
    with pytest.raises(HeadwaterError, match=f"{name}: shard is missing"):
        list(ShardReader(URL, "train", SIDE).batches(16, steps=9))
    moto.put_object(Bucket="lake", Key="set/index.parquet", Body=b"of another upload")
    with pytest.raises(HeadwaterError, match=r"index\.parquet: does not match its checksum"):
        ShardReader(URL, "train", SIDE)
    with pytest.raises(HeadwaterError, match="s3://lake/nothing: holds no shards"):
        ShardReader("s3://lake/nothing", "train", SIDE)
    with pytest.raises(HeadwaterError, match="its bucket does not exist"):
        ShardReader("s3://nowhere/set", "train", SIDE)
    assert alive() == 0


# ---- what goes wrong ----------------------------------------------------------------------------


def test_errors_that_pass_are_waited_out(folder: Path, faulty: Faulty) -> None:
    faulty.fault = lambda name, number: {1: "503", 2: "503", 3: "cut", 4: "cut"}.get(number, "")
    equal(folder)
    by_shard: dict[str, list[int]] = {}
    for name, start in faulty.asked:
        by_shard.setdefault(name, []).append(start)
    train = [starts for name, starts in by_shard.items() if name.startswith("train")]
    assert len(train) > 8
    for starts in train:  # went on where the answers broke off
        assert starts[:3] == [0, 0, 0]
        assert len(starts) == 5
        assert 0 < starts[3] < starts[4]


def test_a_server_that_stays_down_is_an_error_in_time(faulty: Faulty) -> None:
    reader = ShardReader(URL, "train", SIDE)
    faulty.fault = lambda name, number: "503"
    began = time.monotonic()
    with pytest.raises(HeadwaterError, match=r"s3://lake/set/train-\d+\.tar: S3 refused \(503\)"):
        list(reader.batches(16, steps=9))
    assert time.monotonic() - began < 20
    assert alive() == 0


def test_no_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(HeadwaterError, match=r"s3://lake/set/index\.json: S3 does not answer"):
        ShardReader(URL, "train", SIDE)


def test_an_altered_shard_is_refused_and_not_kept(faulty: Faulty) -> None:
    faulty.fault = lambda name, number: "altered" if name == "train-000001.tar" else ""
    with pytest.raises(HeadwaterError, match=r"train-000001\.tar: shard does not match"):
        list(ShardReader(URL, "train", SIDE).batches(16, steps=9))
    known = store.at(URL).about["shards"]["train-000001.tar"]["sha256"]
    assert known not in {f.stem for f in store._cache_folder().iterdir()}
    assert not [f for f in store._cache_folder().iterdir() if f.suffix not in (".tar", ".lock")]


def test_closing_does_not_wait_for_a_dead_server(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAUSE", 60.0)
    reader = ShardReader(URL, "train", SIDE)
    first = reader.frame["shard"].iloc[reader.indices(0, 1)[0]]
    faulty.fault = lambda name, number: "" if name == first else "503"
    stream = reader.batches(1)
    next(stream)
    time.sleep(0.2)  # others are waiting for their second attempt by now
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 5
    assert alive() == 0


# ---- the cache ----------------------------------------------------------------------------------


def test_each_shard_is_fetched_once_by_all_readers(folder: Path, faulty: Faulty) -> None:
    readers = [ShardReader(URL, "train", SIDE, rank=r, world=2) for r in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda r: len(list(r.batches(8, steps=20))), readers))
    asked = [name for name, _ in faulty.asked if name.endswith(".tar")]
    assert len(asked) == len(set(asked)) == readers[0].frame["shard"].nunique()
    equal(folder)
    assert len([n for n, _ in faulty.asked if n.endswith(".tar")]) == len(asked)


def size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # the reader's threads delete meanwhile
        return file.stat().st_size
    return 0


def test_the_cache_is_bounded_and_holds_what_is_needed(
    folder: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "WINDOW", 2)
    sizes = sorted(s["bytes"] for s in read_json(folder / "index.json")["shards"].values())
    room = sum(sizes[-4:])
    bucket = store.at(URL, keep=4, disk_bytes=1)
    assert bucket.room == room  # type: ignore[union-attr]
    reader = ShardReader(URL, "train", SIDE, cache_bytes=0)
    reader.store = bucket
    most = 0
    for _ in reader.batches(8, steps=8):  # one epoch
        most = max(most, sum(map(size, store._cache_folder().glob("*.tar"))))
    assert most <= room + 4 * sizes[-1]  # as many may be about to be counted
    count = reader.frame["shard"].nunique()
    asked = [n for n, _ in faulty.asked if n.endswith(".tar")]
    assert count > 6
    assert len(asked) <= 2 * count
    equal(folder)


def test_shards_of_the_window_after_next_are_not_fetched(
    folder: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "WINDOW", 2)
    reader = ShardReader(URL, "train", SIDE)
    stream = reader.batches(4)
    rows, _ = next(stream)
    time.sleep(0.5)
    asked = {n for n, _ in faulty.asked if n.endswith(".tar")}
    order = reader.frame["shard"].iloc[reader.order(0)]
    soon = list(dict.fromkeys(order))
    assert set(soon[:4]) <= asked <= set(soon[:6])
    assert set(reader.frame["shard"].iloc[rows]) <= asked
    stream.close()
