"""WebDataset tars: members that share a key are one sample.

The key is the name up to the first dot of its last part. The image is the member with an image
ending, or an ``.npy`` array where there is none; the label comes from ``.json`` (which may also
hold group, source and captured_at), else ``.cls``, else ``.txt``.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import HeadwaterError
from ..images import Reject, read_bytes, tar_members, unsafe
from ._item import Item, Row, known, ref_of, refused, text, version_of

ENDINGS = {
    "jpg",
    "jpeg",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "jp2",
    "avif",
}
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SIDECAR = 2**20


def matches(location: str, root: Path) -> bool:
    """Whether this names tars."""
    return location.endswith(".tar") and "://" not in location and not (root / location).is_dir()


def expand(location: str) -> list[str]:
    """``x-{008..010}.tar`` -> x-008.tar, x-009.tar, x-010.tar."""
    found = RANGE.search(location)
    if not found:
        return [location]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    names = (location[: found.start()] + f"{n:0{len(first)}d}" for n in numbers)
    return [whole for name in names for whole in expand(name + location[found.end() :])]


def split_key(name: str) -> tuple[str, str]:
    """``a/x.left.jpg`` -> (a/x, left.jpg)."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return folder + slash + key, ending.lower()


class _Sample:
    """Members of one key."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self.arrays: list[str] = []  # beside an image they may be anything
        self.notes: dict[str, tarfile.TarInfo] = {}

    def add(self, ending: str, info: tarfile.TarInfo) -> None:
        if ending.rpartition(".")[2] in ENDINGS:
            self.images.append(info.name)
        elif ending.rpartition(".")[2] == "npy":
            self.arrays.append(info.name)
        elif ending in ("json", "cls", "txt"):
            self.notes[ending] = info


def _member_problem(info: tarfile.TarInfo) -> Reject | None:
    if unsafe(info.name):
        return Reject("unsafe-path", "the member's name climbs out of the tar")
    if not info.isreg() or info.issparse():
        return Reject("unsafe-path", "a link or a special file")
    if info.name != info.name.encode("utf-8", "replace").decode():
        return Reject("unsafe-path", "the name is not UTF-8")
    return None


def _samples(path: Path, ref: str) -> tuple[dict[str, _Sample], list[Item]]:
    """Samples by key, and what is refused already."""
    samples: dict[str, _Sample] = {}
    bad: list[Item] = []
    seen: set[str] = set()
    try:
        for info in tar_members(path):
            if info.isdir():
                continue
            shown = f"{ref}::{info.name.encode('utf-8', 'backslashreplace').decode()}"
            reject = _member_problem(info)
            if reject is None and info.name in seen:
                reject = Reject("duplicate-key", "the tar holds this name twice")
            if reject:
                bad.append(Item(shown, reject=reject))
                continue
            seen.add(info.name)
            key, ending = split_key(info.name)
            samples.setdefault(key, _Sample()).add(ending, info)
    except Reject as reject:  # the rest of the tar is lost, the members before are not
        bad.append(Item(ref, reject=reject))
    return samples, bad


def _note(sample: _Sample, kind: str, ref: str, root: Path) -> bytes | None:
    info = sample.notes.get(kind)
    if info is None:
        return None
    if info.size > MAX_SIDECAR:
        raise Reject("bad-metadata", f"{info.name} has {info.size:,} bytes")
    return read_bytes(f"{ref}::{info.name}", root)


def _about(sample: _Sample, ref: str, root: Path) -> Row:
    """What the sample's other members say.

    Raises:
        Reject: one of them is unreadable.
    """
    try:
        note = _note(sample, "json", ref, root)
        values = {} if note is None else json.loads(note)
        if not isinstance(values, dict):
            raise Reject("bad-metadata", "the .json is not an object")
        row = known(values)
        for kind in ("cls", "txt"):
            if row["label"] is None and (note := _note(sample, kind, ref, root)) is not None:
                row["label"] = text(note.decode())
        "".join(v or "" for v in row.values()).encode()  # JSON can spell what UTF-8 cannot
    except (ValueError, RecursionError) as error:  # not UTF-8 and not JSON are ValueErrors
        raise Reject("bad-metadata", f"cannot be read ({error})") from None
    return row


def _source(path: Path) -> str:
    """``birds-000017.tar`` -> birds: the shards of one set are one source."""
    return re.sub(r"[-_.]?\d+$", "", path.stem) or path.stem


def _items(path: Path, root: Path) -> Iterator[Item]:
    ref, about = ref_of(path, root), path.stat()
    version = version_of(about.st_size, about.st_mtime_ns)
    samples, bad = _samples(path, ref)
    for key, sample in samples.items():
        pictures = sample.images or sample.arrays
        if not pictures:
            yield refused(f"{ref}::{key}", "not-an-image", "the sample has no image member")
            continue
        try:
            row = _about(sample, ref, root)
        except Reject as reject:
            yield from (Item(f"{ref}::{n}", reject=reject) for n in pictures)
            continue
        for name in pictures:
            yield Item(f"{ref}::{name}", version=version).described(row, _source(path))
    yield from bad


def listing(location: str, root: Path) -> Iterator[Item]:
    """The tars' samples, in order.

    Raises:
        HeadwaterError: a tar is missing, or is none.
    """
    for name in expand(location):
        path = root / name
        if not path.is_file():
            fix = "correct data.sources in params.yaml"
            raise HeadwaterError(f"source '{location}'", f"{name} is not there", fix)
        if not tarfile.is_tarfile(path):
            fix = "write it again, uncompressed"
            raise HeadwaterError(f"source '{location}'", f"{name} is not a tar", fix)
        yield from _items(path, root)
