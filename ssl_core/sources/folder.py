"""A folder of images: ``a/b/x.png`` has label ``a/b``, unless a metadata.csv says more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..config import Data
from ..errors import HeadwaterError
from ..images import TAR, Reject
from ._item import METADATA, Item, Tables, ignored, join, ref_of, refused, version_of


def matches(location: str, root: Path) -> bool:
    """Whether this is a folder, or is missing and looks like one."""
    return (root / location).is_dir() or ("://" not in location and not Path(location).suffix)


def _judge_link(path: Path, base: Path) -> Reject | None:
    """Why a symbolic link is not taken; None for a link to a file inside the source."""
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        return Reject("missing-file", "a link to nothing")
    except (OSError, RuntimeError):  # RuntimeError: what Python < 3.13 raises for a loop
        return Reject("symlink-loop", "a link to itself")
    if not target.is_relative_to(base):
        return Reject("unsafe-path", "a link out of the source")
    if not target.is_dir():
        return None
    if path.parent.resolve().is_relative_to(target):
        return Reject("symlink-loop", "a link to a folder that holds it")
    return Reject("duplicate-key", "a link to a folder that is read itself")


def _take(path: Path, root: Path, base: Path) -> Item:
    ref = ref_of(path, root)
    if not ref.isascii() and ref != ref.encode("utf-8", "replace").decode():
        shown = ref.encode("utf-8", "backslashreplace").decode()
        return refused(shown, "unsafe-path", "the name is not UTF-8")
    if TAR in ref:
        return refused(ref, "unsafe-path", "'.tar::' in a name would mean a member of a tar")
    if path.is_symlink() and (reject := _judge_link(path, base)):
        return Item(ref, reject=reject)
    try:
        about = path.stat()
    except OSError as error:
        return refused(ref, "unreadable", error.strerror or "")
    return Item(ref, version=version_of(about.st_size, about.st_mtime_ns))


def _walk(top: Path, root: Path) -> Iterator[tuple[str, Item | Path]]:
    """(path within the source, item), tables as (folder, path of metadata.csv); top down."""
    base, failed = top.resolve(), list[OSError]()
    for here, folders, names in os.walk(top, onerror=failed.append):
        folder = Path(here)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        links = [f for f in folders if (folder / f).is_symlink()]  # never walked into
        within = folder.relative_to(top)
        for name in sorted([*names, *links]):
            if name == METADATA:
                yield within.as_posix(), folder / name
            elif not ignored(name):
                yield (within / name).as_posix(), _take(folder / name, root, base)
    for error in failed:
        path = Path(str(error.filename))
        item = refused(ref_of(path, root), "unreadable", error.strerror or "")
        yield path.relative_to(top).as_posix(), item


def listing(location: str, root: Path) -> Iterator[Item]:
    """Every file below the folder, sorted within each folder.

    A default source may be absent: a fresh project has collected nothing yet.

    Raises:
        HeadwaterError: the folder is absent, or a metadata.csv is unusable.
    """
    top = root / location
    if not top.is_dir():
        if location in Data().sources:
            return
        rule = "is not there" if not top.exists() else "is not a folder"
        raise HeadwaterError(f"source '{location}'", rule, "correct data.sources in params.yaml")
    tables, files = Tables(), dict[str, Item]()
    for path, found in _walk(top, root):
        if isinstance(found, Item):
            files[path] = found
        else:
            tables.add("" if path == "." else path, found.read_bytes(), found)
    name = top.name or top.resolve().name
    yield from join(files, tables, name, ref_of(top, root) + "/")
