"""One thing found in a source, and the metadata tables that say more about it."""

from __future__ import annotations

import csv
import io
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ..errors import HeadwaterError
from ..images import Reject, unsafe

KNOWN = ("label", "group", "source", "captured_at")
METADATA = "metadata.csv"
IGNORED = (".dvc",)  # endings of files that are no data; so are dotfiles and metadata.csv
Row = dict[str, str | None]


@dataclass(frozen=True)
class Item:
    """An image, or with ``reject`` something that is not taken.

    ``version`` changes when the content does, as far as that can be seen without reading it;
    empty if unknown.
    """

    ref: str
    label: str | None = None
    group: str | None = None
    source: str | None = None
    captured_at: str | None = None
    version: str = ""
    reject: Reject | None = None

    def described(self, row: Row, source: str) -> Item:
        """This image with what a table says; ``source`` where the table gives none."""
        return replace(
            self,
            label=row.get("label"),
            group=row.get("group"),
            source=row.get("source") or source,
            captured_at=row.get("captured_at"),
        )


def refused(ref: str, reason: str, detail: str = "") -> Item:
    """An item that is not taken."""
    return Item(ref, reject=Reject(reason, detail))


def ref_of(path: Path, root: Path) -> str:
    """Relative to the project where it lies inside, else absolute. Links are not followed."""
    full, base = Path(path).absolute(), root.absolute()
    return (full.relative_to(base) if full.is_relative_to(base) else full).as_posix()


def version_of(size: int, mtime_ns: int) -> str:
    """Version of a local file."""
    return f"{size}:{mtime_ns}"


def ignored(name: str) -> bool:
    """Files that belong to tools, not to the data."""
    return name.startswith(".") or name == METADATA or name.endswith(IGNORED)


def text(value: Any) -> str | None:
    """A table's value as text; blank and not-a-number are null, whole floats lose their ``.0``."""
    if value is None or value != value:
        return None
    if isinstance(value, date):  # datetime is one
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def known(values: Mapping[str, Any]) -> Row:
    """The columns that items have."""
    return {name: text(values.get(name)) for name in KNOWN}


def parse_csv(data: bytes, place: object) -> list[tuple[str, Row]]:
    """Rows (path, known columns) of a CSV file with a header. No value but blank means null.

    Raises:
        HeadwaterError: not UTF-8, not CSV, or no column ``path``.
    """
    fix = "save it as UTF-8 CSV with a header that names at least 'path'"
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise HeadwaterError(place, f"cannot be read ({error})", fix) from None
    if "path" not in (reader.fieldnames or ()):
        raise HeadwaterError(place, "has no column 'path'", fix)
    return [(row["path"] or "", known(row)) for row in rows]


def nfc(name: str) -> str:
    """One spelling for names that look the same: file systems and editors differ."""
    return unicodedata.normalize("NFC", name)


class Tables:
    """The metadata.csv files of one source: each describes the files below its folder."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self.rows: dict[str, Row] = {}
        self.spelled: dict[str, str] = {}  # key -> path as the table has it
        self.problems: list[tuple[str, Reject]] = []  # (path within the source, why)

    def add(self, folder: str, data: bytes, place: object) -> None:
        """Take one table in; later ones (add the deeper later) override earlier ones."""
        self.folders.add(folder)
        seen: set[str] = set()
        for name, row in parse_csv(data, place):
            if not name or unsafe(name):
                path = posixpath.join(folder, name.replace("\\", "/").lstrip("/"))
                reason = Reject("unsafe-path", f"{METADATA} names {name!r}")
                self.problems.append((path, reason))
                continue
            path = posixpath.normpath(posixpath.join(folder, name))
            key = nfc(path)
            if key in seen:
                self.problems.append((path, Reject("duplicate-key", f"twice in {METADATA}")))
                continue
            seen.add(key)
            self.rows[key], self.spelled[key] = row, path

    def governs(self, path: str) -> bool:
        """Whether some table lies above this file."""
        return "" in self.folders or any(path.startswith(f"{folder}/") for folder in self.folders)

    def row(self, path: str) -> Row:
        """What is known of a file. Without any table above it, its folder is its label."""
        if (found := self.rows.get(nfc(path))) is not None:
            return found
        parent = posixpath.dirname(path)
        return {"label": None if self.governs(path) or not parent else parent}

    def missing(self, present: set[str]) -> Iterator[tuple[str, Reject]]:
        """Rows without a file; ``present`` holds the paths that were found."""
        there = {nfc(p) for p in present}
        for key, path in self.spelled.items():
            if key not in there:
                yield path, Reject("missing-file", f"{METADATA} names it and it is not there")


def join(files: Mapping[str, Item], tables: Tables, name: str, prefix: str) -> Iterator[Item]:
    """Items by path within a source, with what its tables say; then the tables' own problems.

    ``name`` stands in for a source that no table gives, ``prefix`` + path is a ref.
    """
    for path, item in files.items():
        yield item if item.reject else item.described(tables.row(path), name)
    for path, reject in (*tables.problems, *tables.missing(set(files))):
        yield Item(prefix + path, reject=reject)
