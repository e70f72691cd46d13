"""Untrusted image files: fetched, judged by their header, decoded; what is unfit gets a reason.

A ref names one image: a path (absolute, or relative to the project root), a member of a tar
(``some.tar::member``) or an object (``s3://bucket/key``).

Images of three channels are what Pillow reads, as RGB. Those of another number are ``.npy`` arrays
(``bands.py``); of one, any grey image too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from . import bands, s3

Pixels = NDArray[np.uint8]
TAR = ".tar::"  # where a ref into a tar is cut
MAX_BYTES = 512 * 2**20  # of one file
MAX_PIXELS = 2**29  # backstop where no limit is given: 1.5 GiB as RGB
HASH_SIDE = 128  # a JPEG is decoded at no more than twice this for its pHash, which needs 32
# Other formats Pillow knows are rare, unsafe (EPS runs Ghostscript) or hold no photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
STILL = {"MPO"}  # its further frames are previews and depth maps of the first
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"}
GREY = {"1", "L", "LA", "La"}
ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
BOXES = (b"ftyp", b"jP  ")  # at byte 4 of AVIF and JPEG 2000
CUT = re.compile(r"truncated|\bEOF\b|only got|not enough", re.IGNORECASE)  # Pillow's words for it
CONVERT = (  # how more than 8 bits become 8
    "save uint8: np.clip((a - low) / (high - low) * 255, 0, 255).round().astype(np.uint8), with "
    "one low and high per band for all images"
)
ORIENTATION = 0x0112
TURNS = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The header is judged by this module's own limit, before any pixel; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns of damaged metadata, which is not used here beyond the orientation.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Reject(Exception):
    """An image that is not taken: ``reason`` is a kebab-case code, ``detail`` for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True)
class Facts:
    """What the manifest records of one file. Width and height are as displayed."""

    sha256: str
    phash: str
    width: int
    height: int
    mode: str
    format: str
    bytes: int


# ---- reading -----------------------------------------------------------------------------------


def unsafe(name: str) -> bool:
    """Whether a relative name could leave its folder."""
    pure = PurePosixPath(name.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or "\0" in name


def split_tar(ref: str) -> tuple[str, str] | None:
    """``some.tar::member`` -> (some.tar, member); None for other refs."""
    head, sign, member = ref.partition(TAR)
    return (head + ".tar", member) if sign else None


def read_bytes(ref: str, root: Path) -> bytes:
    """The bytes behind a ref.

    Raises:
        Reject: missing, unsafe, too large or not a regular file.
        HeadwaterError: S3 does not answer, or there is no such bucket.
    """
    if ref.startswith(s3.SCHEME):
        return _read_s3(ref)
    member = split_tar(ref)
    path = member[0] if member else ref
    if not os.path.isabs(path) and unsafe(path):
        raise Reject("unsafe-path", "the path climbs out of the project")
    with _reasons():
        return _read_member(root / path, member[1]) if member else _read_file(root / path)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn the operating system's errors into rejects."""
    try:
        yield
    except OSError as error:
        known = {
            errno.ENOENT: "missing-file",
            errno.ENOTDIR: "missing-file",
            errno.ELOOP: "symlink-loop",
        }
        text = error.strerror or "cannot be read"
        raise Reject(known.get(error.errno or 0, "unreadable"), text) from None


def require_size(size: int) -> None:
    """Refuse a file that is too large to be read.

    Raises:
        Reject: as the name says.
    """
    if size > MAX_BYTES:
        raise Reject("too-large", f"{size:,} bytes; the limit is {MAX_BYTES:,}")


def _read_file(path: Path) -> bytes:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
        raise Reject("not-an-image", "not a regular file")
    require_size(about.st_size)
    return path.read_bytes()


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers of an uncompressed tar, in order.

    Raises:
        Reject: the file is cut short or damaged; after all members that could be found.
        OSError: it cannot be opened.
    """
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            yield from tar
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
            if any(stream.read()):
                raise Reject("truncated", "the tar lacks its end: members may be lost")
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise Reject("truncated", f"the tar is damaged: {error}") from None


@functools.lru_cache(maxsize=256)
def _tar_index(path: Path, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of regular members; the first of equal names counts."""
    found: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(Reject):  # members before the damage can still be read
        for info in tar_members(path):
            if info.isreg() and not info.issparse():
                found.setdefault(info.name, (info.offset_data, info.size))
    return found


_TAR_LOCK = threading.Lock()  # threads that ask at once index a tar once


def _read_member(path: Path, name: str) -> bytes:
    if unsafe(name):
        raise Reject("unsafe-path", "the member's name climbs out of the tar")
    about = path.stat()
    with _TAR_LOCK:
        index = _tar_index(path, about.st_size, about.st_mtime_ns)
    if name not in index:
        raise Reject("missing-file", f"{path.name} holds no such regular member")
    offset, size = index[name]
    require_size(size)
    with path.open("rb", buffering=0) as stream:
        data = os.pread(stream.fileno(), size, offset)
    if len(data) < size:
        raise Reject("truncated", f"{path.name} ends {size - len(data)} bytes early")
    return data


# ---- S3 ----------------------------------------------------------------------------------------


def _read_s3(ref: str) -> bytes:
    parts: list[bytes] = []
    try:
        s3.download(ref, parts.append, require_size)
    except s3.Missing:
        raise Reject("missing-file", "no such object") from None
    return b"".join(parts)


# ---- judging and decoding ----------------------------------------------------------------------


def _boxes_end(data: bytes) -> int:
    """Where the ISO boxes of an AVIF or JPEG 2000 file say that it ends."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8:  # 0: to the end of the file; 1: a 64-bit size, beyond our limits
            return len(data)
        place += size
    return place


def _ends_early(data: bytes) -> bool:
    """Whether the file lacks its end, as far as its format tells."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-64:]
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-64:]
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith((b"II*\0", b"MM\0*")):  # the directory may stand at the end
        return len(data) < int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big")
    return data[4:8] in BOXES and len(data) < _boxes_end(data)


@contextlib.contextmanager
def _judged(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises on hostile bytes into a reject."""
    try:
        yield
    except Reject:
        raise
    except MemoryError:
        raise Reject("too-many-pixels", "does not fit into memory") from None
    except UnidentifiedImageError:
        if data.startswith(MAGIC) or data[4:8] in BOXES:
            reason = "truncated" if _ends_early(data) or len(data) < 64 else "corrupt"
            raise Reject(reason, "the file ends or breaks within its header") from None
        raise Reject("not-an-image", f"none of {', '.join(FORMATS)}") from None
    except Exception as error:  # any of a dozen types, by format and by kind of damage
        text = re.sub(r"<.*? at 0x\w+>", "", str(error)).strip() or type(error).__name__
        cut = isinstance(error, EOFError) or CUT.search(text) or _ends_early(data)
        raise Reject("truncated" if cut else "corrupt", text) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)  # AVIF is not in every build


def _sixteen(image: Image.Image) -> bool:
    """More than 8 bits per channel; Pillow reduces 16-bit RGB silently, so ask its decoder."""
    if image.mode.startswith(("I", "F")):
        return True
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ()
    args = args if isinstance(args, tuple) else (args,)
    deep = any(isinstance(a, str) and ";16" in a for a in args)
    return deep or (image.format == "PPM" and any(isinstance(a, int) and a > 255 for a in args))


def _judge_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise Reject("too-many-pixels", f"{width} × {height}; the limit is {max_pixels:,}")
    if width < 1 or height < 1:
        raise Reject("corrupt", f"{width} × {height} pixels")
    if image.format not in STILL and getattr(image, "is_animated", False):
        raise Reject("animated", "more than one frame")
    if image.mode == "CMYK":
        raise Reject("cmyk", "printing colours without a known profile")
    if _sixteen(image):
        raise Reject("16-bit", f"more than 8 bits per channel (mode {image.mode})")
    if image.mode not in MODES:
        raise Reject("unsupported-mode", f"mode {image.mode}")


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read and judge the header; no pixel is decoded. Call within :func:`_judged`."""
    if not data:
        raise Reject("empty", "zero bytes")
    image = Image.open(io.BytesIO(data), formats=_formats())
    _judge_header(image, max_pixels)
    return image


def _require_bands(image: Image.Image, channels: int) -> None:
    """What is no array has one band or three; transparency is none."""
    found = 1 if image.mode in GREY else 3
    if channels not in (3, found):  # grey makes RGB
        raise Reject("channels", f"{found} (mode {image.mode}); data.channels is {channels}")


def _judge_array(data: bytes, max_pixels: int, channels: int) -> bands.Header:
    """The header of an .npy file; no value is read.

    Raises:
        Reject: unfit.
    """
    if channels == 3:
        raise Reject("not-an-image", "a NumPy array; save RGB as PNG, or set data.channels")
    try:
        header = bands.read_header(data)
    except ValueError as error:
        short = len(data) < 10 or len(data) < 10 + int.from_bytes(data[8:10], "little")
        raise Reject("truncated" if short else "corrupt", str(error)) from None
    shape, dtype = header.shape, header.dtype
    if dtype.kind in "iuf" and dtype.itemsize > 1:
        raise Reject("16-bit", f"dtype {dtype}; {CONVERT}")
    if dtype != np.uint8 or len(shape) not in (2, 3):
        rule = "(height, width, bands) of uint8 is read"
        raise Reject("unsupported-mode", f"{dtype} array of shape {shape}; only {rule}")
    found = shape[2] if len(shape) == 3 else 1
    if found != channels:
        hint = "; the bands come last" if channels == shape[0] else ""
        raise Reject("channels", f"{found} (shape {shape}); data.channels is {channels}{hint}")
    _judge_length(header, len(data), max_pixels)
    return header


def _judge_length(header: bands.Header, length: int, max_pixels: int) -> None:
    height, width = header.shape[:2]
    if min(height, width) < 1:
        raise Reject("corrupt", f"{width} × {height} pixels")
    if height * width > max_pixels:
        raise Reject("too-many-pixels", f"{width} × {height}; the limit is {max_pixels:,}")
    if length != header.end:
        reason = "truncated" if length < header.end else "corrupt"
        raise Reject(reason, f"{length:,} bytes; shape {header.shape} makes {header.end:,}")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF does not spoil the picture
        return 1


def _shrunk(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, transparency flattened on white."""
    if image.mode not in ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _load(image: Image.Image, max_side: int) -> Image.Image:
    """Decode at the smallest scale (JPEG only) that does not fall below ``max_side``; RGB."""
    turn = TURNS.get(_orientation(image))
    image.draft("RGB", _shrunk(image.size, max_side))
    image.load()
    flat = _rgb(image)
    return flat if turn is None else flat.transpose(turn)


def decode(data: bytes, max_side: int, max_pixels: int = MAX_PIXELS, channels: int = 3) -> Pixels:
    """Encoded bytes -> uint8 (H, W, channels), longest side <= ``max_side``.

    Three channels are RGB, upright, on white. Images are scaled down (antialiased), never up.

    Raises:
        Reject: unfit by its header, of other channels, or undecodable.
    """
    if bands.is_array(data):
        _judge_array(data, max_pixels, channels)
        pixels = bands.unpack(data)
        small = _shrunk((pixels.shape[1], pixels.shape[0]), max_side)
        return bands.resize(pixels, small) if small != pixels.shape[1::-1] else pixels.copy()
    with _judged(data):
        opened = _open(data, max_pixels)
        _require_bands(opened, channels)
        image = _load(opened, max_side)
        small = _shrunk(image.size, max_side)
        if small != image.size:
            image = image.resize(small, Image.Resampling.BICUBIC)
        return np.array(image)[..., :channels]  # of grey, all three are equal


def require_sides(width: int, height: int, min_side: int, max_pixels: int) -> None:
    """Refuse an image by its size.

    Raises:
        Reject: too small or too large.
    """
    if min(width, height) < min_side:
        raise Reject("too-small", f"{width} × {height}; sides must have {min_side} pixels")
    if width * height > max_pixels:
        raise Reject("too-many-pixels", f"{width} × {height}; the limit is {max_pixels:,}")


def _check_sums(image: Image.Image, data: bytes) -> None:
    """Compare a PNG's checksums: Pillow decodes damaged pixels without complaint."""
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()


def _examine_array(data: bytes, min_side: int, max_pixels: int, channels: int) -> Facts:
    import imagehash

    header = _judge_array(data, max_pixels, channels)
    height, width = header.shape[:2]
    require_sides(width, height, min_side, max_pixels)
    colours = Image.fromarray(np.ascontiguousarray(bands.to_rgb(bands.unpack(data))))
    digest, phash = hashlib.sha256(data).hexdigest(), str(imagehash.phash(colours))
    return Facts(digest, phash, width, height, f"{channels} bands", "NPY", len(data))


def examine(
    data: bytes, min_side: int = 1, max_pixels: int = MAX_PIXELS, channels: int = 3
) -> Facts:
    """Decode one file fully and describe it.

    The pHash is ``imagehash.phash`` of the upright picture on white (16 hex characters), or of
    an array's ``bands.to_rgb``.

    Raises:
        Reject: unfit by its header or size, of other channels, or undecodable.
    """
    import imagehash

    if bands.is_array(data):
        return _examine_array(data, min_side, max_pixels, channels)
    with _judged(data):
        image = _open(data, max_pixels)
        _require_bands(image, channels)
        (width, height), mode, kind = image.size, image.mode, str(image.format)
        require_sides(width, height, min_side, max_pixels)
        _check_sums(image, data)
        if _orientation(image) >= 5:
            width, height = height, width
        phash = str(imagehash.phash(_load(image, HASH_SIDE)))
        digest = hashlib.sha256(data).hexdigest()
        return Facts(digest, phash, width, height, mode, kind, len(data))
