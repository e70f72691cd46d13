"""Hostile files: an image, or a reject with a known reason; within bounds of time and memory.

Mutations are seeded, so that a failure names the file that made it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_image

from ssl_core import images, sources
from ssl_core.errors import HeadwaterError
from ssl_core.images import Reject

REASONS = {"16-bit", "animated", "channels", "cmyk", "corrupt", "empty", "not-an-image"}
REASONS |= {"too-large", "too-many-pixels", "too-small", "truncated", "unsupported-mode"}
LISTED = REASONS | {"bad-metadata", "duplicate-key", "missing-file", "unsafe-path"}
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
CASES, SECONDS = 120, 5.0  # of each format; for any one file
MAX_PIXELS = 4_000_000
Rng = np.random.Generator


@contextlib.contextmanager
def limit(what: object) -> Iterator[None]:
    """Fail where a file takes too long (of the processor), rather than hang."""

    def late(*_: object) -> None:
        pytest.fail(f"{what}: more than {SECONDS} s")

    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def valid(kind: str) -> bytes:
    """A 40 × 30 crop of a photograph."""
    crop, out = load_sample_image("flower.jpg")[200:230, 300:340], io.BytesIO()
    if kind == "NPY":
        np.save(out, np.concatenate([crop, crop[..., :2]], 2))  # (30, 40, 5)
    else:
        Image.fromarray(crop).save(out, kind)
    return out.getvalue()


def flip(data: bytearray, rng: Rng) -> bytes:
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] = rng.integers(0, 256)
    return bytes(data)


def extreme(data: bytearray, rng: Rng) -> bytes:
    """A number of the header becomes huge, zero or negative."""
    place = int(rng.integers(0, min(len(data), 200)))
    choices = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff")
    value = choices[rng.integers(0, len(choices))]
    data[place : place + len(value)] = value
    return bytes(data)


def cut(data: bytearray, rng: Rng) -> bytes:
    return bytes(data[: rng.integers(0, len(data))])


def repeat(data: bytearray, rng: Rng) -> bytes:
    first, last = sorted(rng.integers(0, len(data), 2))
    return bytes(data[:last] + data[first:last] * int(rng.integers(1, 5)) + data[last:])


def splice(data: bytearray, rng: Rng) -> bytes:
    """Begins as this and goes on as another format."""
    place = int(rng.integers(0, len(data)))
    return bytes(data[:place]) + valid(FORMATS[rng.integers(0, len(FORMATS))])


MUTATIONS = (flip, extreme, cut, repeat, splice)


def mutants(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    for i in range(count):
        change = MUTATIONS[i % len(MUTATIONS)]
        yield f"seed {seed}, {i} ({change.__name__})", change(bytearray(data), rng)


def outcome(data: bytes, channels: int = 3) -> str:
    """``image``, or the reason; both doors into decoding agree that it is one."""
    try:
        facts = images.examine(data, 1, MAX_PIXELS, channels)
    except Reject as reject:
        with contextlib.suppress(Reject):
            images.decode(data, 64, MAX_PIXELS, channels)
        return reject.reason
    pixels = images.decode(data, 64, MAX_PIXELS, channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == channels
    assert 1 <= max(pixels.shape[:2]) <= 64
    assert facts.width * facts.height <= MAX_PIXELS
    return "image"


# ---- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*FORMATS, "NPY"])
def test_a_damaged_file_is_an_image_or_a_known_reject(kind: str) -> None:
    seen: Counter[str] = Counter()
    channels = 5 if kind == "NPY" else 3
    seed = [*FORMATS, "NPY"].index(kind)
    assert outcome(valid(kind), channels) == "image"
    for name, data in mutants(valid(kind), seed, CASES):
        with limit(f"{kind}, {name}"):
            seen[outcome(data, channels)] += 1
    assert seen.keys() <= REASONS | {"image"}
    assert sum(seen.values()) == CASES
    assert len(seen) > 1, seen  # the damage was felt


def test_noise_is_no_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        with limit("noise"):
            assert outcome(rng.bytes(int(rng.integers(0, 400)))) != "image"


BOMBS = """
import io, resource, struct, sys, zlib
import numpy as np
from ssl_core import images
import imagehash, scipy.fftpack

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

def png(width, height, *before):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(width + 1) * min(height, 3000)))
    return b"\\x89PNG\\r\\n\\x1a\\n" + head + b"".join(before) + body + chunk(b"IEND", b"")

zeros = zlib.compress(bytes(200 * 2**20), 9)
array = io.BytesIO()
np.lib.format.write_array_header_1_0(
    array, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 5)}
)
bombs = {
    "wide": png(40_000, 40_000),
    "text": png(8, 8, chunk(b"zTXt", b"a\\0\\0" + zeros)),
    "profile": png(8, 8, chunk(b"iCCP", b"a\\0\\0" + zeros)),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\\0\\0\\0\\0"
        + struct.pack("<HHB", 65535, 65535, 0) + b"\\x08\\x01\\0\\0;",
    "bmp": b"BM" + struct.pack("<IHHI", 60, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm": b"P6 100000 100000 255\\n" + bytes(100),
    "array": array.getvalue(),
}
with open("/proc/self/statm") as stream:
    used = int(stream.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20,) * 2)
for name, data in bombs.items():
    try:
        print(name, images.examine(data, channels=5 if name == "array" else 3).format)
    except images.Reject as reject:
        print(name, reject.reason)
"""


def test_bombs_are_refused_within_256_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMBS],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    large = ("wide", "gif", "bmp", "ppm", "array")
    assert {found[name] for name in large} == {"too-many-pixels"}, found
    assert found["text"] == "corrupt"
    assert found["profile"] in ("corrupt", "PNG")  # a profile is not used: it may be passed over


# ---- tars ---------------------------------------------------------------------------------------


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def small_tar() -> bytes:
    members = {}
    for i, kind in enumerate(("PNG", "JPEG", "GIF")):
        members[f"s{i}.{kind.lower()}"] = valid(kind)
        members[f"s{i}.json"] = json.dumps({"label": "cat", "group": f"g{i}"}).encode()
    return tar(members)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_tar_is_listed_to_its_last_readable_member(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "x.tar"
    seen: Counter[str] = Counter()
    for name, data in mutants(small_tar(), seed, CASES):
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        images._tar_index.cache_clear()
        with limit(name):
            try:
                items = list(sources.listing("x.tar", tmp_path))
            except HeadwaterError as error:
                seen[error.rule] += 1
                continue
            for item in items:
                reject = item.reject
                try:
                    if reject is None:
                        seen[outcome(images.read_bytes(item.ref, tmp_path))] += 1
                except Reject as late:
                    reject = late
                if reject is not None:
                    assert reject.reason in LISTED, name
                    seen[reject.reason] += 1
    assert seen.keys() <= LISTED | {"image", "x.tar is not a tar"}
    assert seen["image"] > CASES
    assert seen["truncated"] > 0


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    poison = pickle.dumps(Touch(sign))
    array = io.BytesIO()
    np.save(array, np.array([Touch(sign)], dtype=object), allow_pickle=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in {"a.pkl": poison, "b.png": poison, "c.npy": array.getvalue()}.items():
        (folder / name).write_bytes(data)
    members = {"a.pyd": poison, "b.pth": poison, "c.npy": array.getvalue(), "d.png": poison}
    (tmp_path / "x.tar").write_bytes(tar(members | {"e.json": poison, "e.png": valid("PNG")}))
    reasons = Counter[str]()
    for channels in (1, 3):
        for location in ("folder", "x.tar"):
            for item in sources.listing(location, tmp_path):
                reject = item.reject
                if reject is None:
                    with pytest.raises(Reject) as caught:
                        images.examine(images.read_bytes(item.ref, tmp_path), channels=channels)
                    reject = caught.value
                reasons[reject.reason] += 1
    assert set(reasons) <= {"not-an-image", "unsupported-mode", "bad-metadata", "corrupt"}
    assert reasons["not-an-image"] >= 8
    assert reasons["bad-metadata"] == 2
    with pytest.raises(ValueError, match=r"allow_pickle|Object arrays"):
        np.load(io.BytesIO(array.getvalue()))
    assert not sign.exists()
    pickle.loads(poison)  # the poison works
    assert sign.exists()
