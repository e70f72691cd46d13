"""Planted bad files are refused with the right reason, good ones of any kind come out upright."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from ssl_core import images, s3
from ssl_core.errors import HeadwaterError
from ssl_core.images import Reject

LIMIT = 100_000_000
PHOTO = load_sample_images().images[0][:200, :300]  # (200, 300, 3)
SMALL = PHOTO[:40, :60]


def encode(kind: str, picture: Any = PHOTO, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """A PNG by hand: Pillow writes neither 16-bit RGB nor headers that lie."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def rgb(mode: str) -> Image.Image:
    return Image.fromarray(SMALL).convert(mode)


def frames(kind: str) -> bytes:
    return encode(kind, SMALL, save_all=True, append_images=[Image.fromarray(255 - SMALL)])


DEEP = Image.fromarray(SMALL[..., 0].astype(np.uint16) * 257)
DEEP_ROWS = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in SMALL)
BAD = {
    "zero": (b"", "empty"),
    "text": (b"hello, I am a picture", "not-an-image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
    "half-jpeg": (encode("JPEG")[:5000], "truncated"),
    "half-png": (encode("PNG")[:5000], "truncated"),
    "half-webp": (encode("WEBP")[:5000], "truncated"),
    "flipped-png": (encode("PNG")[:3000] + b"\x00\xff" + encode("PNG")[3002:], "corrupt"),
    "cmyk-jpeg": (encode("JPEG", rgb("CMYK")), "cmyk"),
    "cmyk-tiff": (encode("TIFF", rgb("CMYK")), "cmyk"),
    "grey-16": (encode("PNG", DEEP), "16-bit"),
    "tiff-16": (encode("TIFF", DEEP), "16-bit"),
    "colour-16": (png(60, 40, 16, DEEP_ROWS), "16-bit"),
    "float": (encode("TIFF", rgb("F")), "16-bit"),
    "ppm-16": (b"P6 2 2 65535\n" + bytes(24), "16-bit"),
    "lab": (encode("TIFF", rgb("LAB")), "unsupported-mode"),
    "gif": (frames("GIF"), "animated"),
    "apng": (frames("PNG"), "animated"),
    "webp": (frames("WEBP"), "animated"),
    "pages": (frames("TIFF"), "animated"),
    "huge-header": (png(60_000, 60_000, 8, bytes(1000)), "too-many-pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_refused_with_their_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(Reject) as refusal:
        images.examine(data, 16, LIMIT)
    assert refusal.value.reason == reason
    assert " at 0x" not in refusal.value.detail  # would differ from run to run
    if reason == "corrupt":
        return  # a wrong checksum is found when a file comes in; later its sha256 vouches for it
    with pytest.raises(Reject) as refusal:
        images.decode(data, 64, LIMIT)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_a_file_cut_anywhere_is_truncated(kind: str) -> None:
    data = encode(kind)
    images.examine(data)
    for share in (0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99):
        for read in (images.examine, lambda d: images.decode(d, 32)):
            with pytest.raises(Reject) as refusal:
                read(data[: int(len(data) * share)])
            assert refusal.value.reason == "truncated", share


def test_hostile_bytes_raise_nothing_but_rejects() -> None:
    rng = np.random.default_rng(0)
    whole = [encode(k, SMALL) for k in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "AVIF")]
    refused = 0
    for i in range(400):
        data = bytearray(whole[i % len(whole)])
        for place in rng.integers(0, min(len(data), 200 if i % 2 else len(data)), 6):
            data[place] ^= int(rng.integers(1, 256))
        try:
            facts = images.examine(bytes(data), 1, LIMIT)
            assert len(facts.phash) == 16
        except Reject:
            refused += 1
    assert refused > 150


def test_the_header_is_judged_before_any_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_load", lambda *_: pytest.fail("decoded"))
    for data, reason in ((encode("PNG"), "too-many-pixels"), (encode("PNG"), "too-small")):
        limits = (1, 59_999) if reason == "too-many-pixels" else (201, LIMIT)
        with pytest.raises(Reject, match=reason):
            images.examine(data, *limits)
    with pytest.raises(pytest.fail.Exception):
        images.examine(encode("PNG"), 200, 60_000)  # both limits are inclusive


# ---- good files --------------------------------------------------------------------------------

GOOD = {
    "bilevel": (encode("PNG", rgb("1")), "1"),
    "grey": (encode("JPEG", rgb("L")), "L"),
    "grey-alpha": (encode("PNG", rgb("LA")), "LA"),
    "palette": (encode("PNG", rgb("P")), "P"),
    "palette-alpha": (encode("PNG", rgb("P"), transparency=bytes(range(256))), "P"),
    "colour-key": (encode("PNG", SMALL, transparency=(0, 0, 0)), "RGB"),
    "alpha": (encode("PNG", rgb("RGBA")), "RGBA"),
    "webp": (encode("WEBP", SMALL), "RGB"),
    "gif": (encode("GIF", SMALL), "P"),
    "bmp": (encode("BMP", SMALL), "RGB"),
    "tiff": (encode("TIFF", SMALL), "RGB"),
    "avif": (encode("AVIF", SMALL), "RGB"),
    "mpo": (frames("MPO"), "RGB"),
    "progressive": (encode("JPEG", SMALL, progressive=True), "RGB"),
}


@pytest.mark.parametrize("name", GOOD)
def test_any_still_8_bit_image_becomes_rgb(name: str) -> None:
    data, mode = GOOD[name]
    facts = images.examine(data, 40, 2400)
    assert (facts.width, facts.height, facts.bytes) == (60, 40, len(data))
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert facts.mode == mode or (name == "gif" and facts.mode == "RGB")
    pixels = images.decode(data, 64)
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert name == "bilevel" or np.abs(pixels.mean() - SMALL.mean()) < 60


def test_transparency_is_flattened_on_white() -> None:
    pixels = np.zeros((20, 20, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # red, and clear but for the right half
    pixels[:, 10:, 3] = 255
    out = images.decode(encode("PNG", pixels), 20)
    assert (out[:, :10] == 255).all()
    assert (out[:, 10:] == [255, 0, 0]).all()
    key = images.decode(encode("PNG", SMALL * 0, transparency=(0, 0, 0)), 60)
    assert (key == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = turn
    data = encode(kind, PHOTO[:100, :180], exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(upright.convert("RGB"))
    facts = images.examine(data)
    assert (facts.height, facts.width) == expected.shape[:2]
    assert (images.decode(data, 180) == expected).all()
    assert images.decode(data, 90).shape == ((50, 90, 3) if turn < 5 else (90, 50, 3))


# Pillow warns; the library ignores that, but pytest's "error" comes first.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_does_not_spoil_the_picture() -> None:
    data = encode("JPEG", SMALL, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40)))
    assert images.examine(data).width == 60


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1000, 3), (7, 7), (64, 64)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_longest_side_shrinks_and_never_grows(kind: str, size: tuple[int, int]) -> None:
    data = encode(kind, Image.fromarray(PHOTO).resize(size))
    height, width = images.decode(data, 64).shape[:2]
    scale = min(1, 64 / max(size))
    assert (width, height) == tuple(max(1, round(s * scale)) for s in size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_shrinking_is_antialiased(kind: str) -> None:
    stripes = np.zeros((512, 512, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    out = images.decode(encode(kind, stripes), 60).astype(int)
    assert np.abs(out[5:-5, 5:-5] - 127).max() < 12


def test_a_jpeg_decoded_at_a_fraction_looks_like_the_whole() -> None:
    photo = Image.fromarray(load_sample_images().images[1])  # 640 x 427
    data = encode("JPEG", photo, quality=95)
    fast = images.decode(data, 100).astype(float)
    slow = np.asarray(photo.resize((100, 67), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(fast - slow).mean() < 3
    whole, part = imagehash.phash(photo), imagehash.hex_to_hash(images.examine(data).phash)
    assert whole - part <= 2


def test_the_phash_is_imagehash_of_the_picture_on_white() -> None:
    assert images.examine(encode("PNG", SMALL)).phash == str(imagehash.phash(rgb("RGB")))
    clear = Image.fromarray(SMALL).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    white = Image.new("RGBA", clear.size, "white")
    flat = Image.alpha_composite(white, clear).convert("RGB")
    assert images.examine(encode("PNG", clear)).phash == str(imagehash.phash(flat))


# ---- refs --------------------------------------------------------------------------------------


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def reason(ref: str, root: Path) -> str:
    with pytest.raises(Reject) as refusal:
        images.read_bytes(ref, root)
    return refusal.value.reason


def test_files_and_tar_members_are_read_by_their_ref(tmp_path: Path) -> None:
    (tmp_path / "naïve 図.png").write_bytes(b"one")
    tar_of(tmp_path / "x.tar", {"a/b.png": b"two", "c": b"three" * 1000, "é::x.tar::y": b"four"})
    assert images.read_bytes("naïve 図.png", tmp_path) == b"one"
    assert images.read_bytes(str(tmp_path / "naïve 図.png"), Path("/nowhere")) == b"one"
    assert images.read_bytes("x.tar::a/b.png", tmp_path) == b"two"
    assert images.read_bytes("x.tar::c", tmp_path) == b"three" * 1000
    assert images.read_bytes("x.tar::é::x.tar::y", tmp_path) == b"four"
    tar_of(tmp_path / "x.tar", {"c": b"new"})  # the index of the old one is not trusted
    os.utime(tmp_path / "x.tar", ns=(1, 1))
    assert images.read_bytes("x.tar::c", tmp_path) == b"new"
    assert reason("x.tar::a/b.png", tmp_path) == "missing-file"


def test_what_cannot_be_read_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(bytes(101))
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    reasons = {
        "gone.png": "missing-file",
        "large/x.png": "missing-file",
        "gone.tar::x": "missing-file",
        "loop": "symlink-loop",
        "pipe": "not-an-image",
        "folder": "not-an-image",
        "large": "too-large",
        "../x.png": "unsafe-path",
        "a/../../x.png": "unsafe-path",
    }
    assert {ref: reason(ref, tmp_path) for ref in reasons} == reasons


def test_members_that_climb_or_are_links_or_are_cut_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    tar_of(path, {"../out.png": b"x", "/etc/x.png": b"x", "ok": b"y", "last": b"z" * 30_000})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert reason("evil.tar::../out.png", tmp_path) == "unsafe-path"
    assert reason("evil.tar::/etc/x.png", tmp_path) == "unsafe-path"
    assert reason("evil.tar::link", tmp_path) == "missing-file"
    path.write_bytes(path.read_bytes()[:20_000])
    assert images.read_bytes("evil.tar::ok", tmp_path) == b"y"
    assert reason("evil.tar::last", tmp_path) in ("truncated", "missing-file")
    (tmp_path / "no.tar").write_bytes(b"not a tar at all" * 100)
    assert reason("no.tar::x", tmp_path) == "missing-file"


def test_an_s3_that_does_not_answer_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("ENDPOINT_URL", "http://127.0.0.1:9"),
        ("ACCESS_KEY_ID", "x"),
        ("SECRET_ACCESS_KEY", "x"),
        ("MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3, "PAUSE", 0.01)
    s3._client.cache_clear()
    with pytest.raises(HeadwaterError, match=r"s3://bucket/x\.png: S3 does not answer"):
        images.read_bytes("s3://bucket/x.png", Path())
    s3._client.cache_clear()
