"""Whether places answer, and the checks of ``headwater doctor`` about DVC."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HeadwaterError
from ..s3 import SCHEME
from ._common import LOGIN
from ._line import FAIL, OK, WARN, Line

if TYPE_CHECKING:
    from ..config import Config, Paths


def can_write(place: Path) -> bool:
    """Try it in the nearest folder that is there: access rights alone do not know full quotas."""
    while not place.exists():
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor."):
            return True
    except OSError:
        return False


def reach(location: str) -> None:
    """One small question to S3.

    Raises:
        HeadwaterError: it does not answer, refuses, or has no such bucket.
    """
    from .. import s3

    bucket, prefix = s3.split(location)
    try:
        with s3.errors(location):
            s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except s3.Missing:
        fix = "check the address and AWS_ENDPOINT_URL"
        raise HeadwaterError(location, "its bucket does not exist", fix) from None


def check(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Installed, initialised, a remote that answers, no lock of a dead process."""
    folder = paths.root / ".dvc"
    if importlib.util.find_spec("dvc") is None:
        yield Line(WARN, "dvc", "is not installed: products have no versions", "pip install dvc")
        return
    if not folder.is_dir():
        repair = "git init; dvc init" if (paths.root / "dvc.yaml").exists() else "headwater init"
        yield Line(WARN, "dvc", "this folder is no DVC project", repair)
        return
    yield from remotes(folder)
    yield from locks(folder)


def remotes(folder: Path) -> Iterator[Line]:
    config = configparser.ConfigParser(strict=False)
    config.read([folder / "config", folder / "config.local"])
    urls = {
        name.strip("'\"").removeprefix('remote "').rstrip('"'): config[name].get("url", "")
        for name in config.sections()
        if "remote" in name
    }
    if not urls:
        repair = "dvc remote add -d NAME s3://bucket/prefix (or a folder)"
        yield Line(WARN, "dvc", "has no remote: the only copy is on this disk", repair)
    for name, url in urls.items():
        if url.startswith(SCHEME):
            reach(url)
        elif "://" not in url and not can_write(folder / url):
            repair = f"dvc remote modify {name} url PLACE"
            yield Line(FAIL, "dvc", f"remote {name} ({url}) cannot be written", repair)
            continue
        yield Line(OK, "dvc", f"remote {name}: {LOGIN.sub('***@', url)}")


def locks(folder: Path) -> Iterator[Line]:
    """DVC's read-write lock names its holders by pid; its other lock ends with the process."""
    file = folder / "tmp/rwlock"
    if not file.exists():
        return
    try:
        held = json.loads(file.read_text() or "{}")
    except json.JSONDecodeError:
        held = {"?": "damaged"}
    pids = set(_pids(held))
    dead = sorted(p for p in pids if not _alive(p))
    if dead or "?" in held:
        names = ", ".join(map(str, dead)) or "nobody knows whom"
        repair = f"rm {file}"
        yield Line(WARN, "dvc", f"{file} is held by processes that are over ({names})", repair)


def _pids(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        if isinstance(value.get("pid"), int):
            yield value["pid"]
        for inner in value.values():
            yield from _pids(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pids(inner)


def _alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # another user's: alive
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
