"""Files that are whole or absent: atomic writes, checksums, and the lineage beside each product."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import __version__
from .errors import HeadwaterError

LINEAGE = "lineage.json"
ENCODER = ("encoder.safetensors", "encoder.json")  # weights, and what builds the model again
FULL = {errno.ENOSPC, errno.EDQUOT}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Say what is wrong with the place where ``path`` is to be written.

    Raises:
        HeadwaterError: the disk is full, or writing is not allowed.
    """
    try:
        yield
    except OSError as error:
        # NumPy says how much it could write, without an error number.
        if error.errno in FULL or "requested and" in str(error):
            fix = "free some (`headwater clean` says what may go), then run again"
            raise HeadwaterError(path, "could not be written: no space left", fix) from error
        here = Path(str(error.filename or path)).is_relative_to(path.parent)
        if error.errno in CLOSED and here:  # elsewhere it is an input that may not be read
            fix = "make the folder writable, or choose another place"
            raise HeadwaterError(path, f"could not be written ({error.strerror})", fix) from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success fsync and rename it onto ``path``.

    Raises:
        HeadwaterError: the disk is full, or writing is not allowed.
    """
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temp = Path(name)
        try:
            yield temp
            with temp.open("rb+") as stream:
                os.fsync(stream.fileno())
            temp.chmod(0o644)
            os.replace(temp, path)
            _sync_dir(path.parent)
        finally:
            temp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it takes the place of ``path``.

    The old folder is renamed aside and deleted last, so a crash leaves one whole version.
    Files are fsynced before the swap.

    Raises:
        HeadwaterError: the disk is full, or writing is not allowed.
    """
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        old = temp.with_name(temp.name + ".old")
        try:
            yield temp
            for file in temp.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())
            temp.chmod(0o755)
            if path.exists():
                os.replace(path, old)
            os.replace(temp, path)
            _sync_dir(path.parent)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing.

    Safe because files are replaced whole and never written in place.
    """
    try:
        if os.access(source, os.W_OK):  # what is read-only could not be synced under its new name
            os.link(source, target)
            return
    except OSError:
        pass
    shutil.copyfile(source, target)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    with atomic_file(path) as temp:
        temp.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON atomically; equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file written by :func:`write_json`."""
    return json.loads(path.read_text())


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line and fsync it: for logs that only grow.

    A torn last line (crash while appending) is ended first, so it can never swallow a record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(record, sort_keys=True) + "\n").encode()
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            data = data if stream.read(1) == b"\n" else b"\n" + data
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, skipping a torn one."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_tree(path: Path) -> str:
    """Hex digest of a folder: relative names and contents, independent of times and order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def write_lineage(
    folder: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    counts: Mapping[str, Any],
) -> None:
    """Write the small JSON that says where a product came from.

    ``inputs`` are product folders (their own lineage file stands for them) or single files.
    It holds no time and no absolute path: the same inputs give the same bytes by every door.
    """
    hashes = {
        name: sha256_file(path / LINEAGE if path.is_dir() else path)
        for name, path in sorted(inputs.items())
    }
    record = {
        "stage": stage,
        "version": __version__,
        "config": dict(config),
        "config_sha256": sha256_json(dict(config)),
        "inputs": hashes,
        "counts": dict(counts),
        "outputs": {
            p.relative_to(folder).as_posix(): sha256_file(p)
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != LINEAGE
        },
    }
    write_json(folder / LINEAGE, record)
