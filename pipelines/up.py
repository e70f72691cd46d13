"""Webserver, daemon, code server and Postgres on one machine, without Docker.

python -m pipelines.up start|stop|status|reload    (`make up`, `make down`)

``run`` is the same in the foreground, for systemd: it starts what has ended and stops all at
SIGTERM. ``start`` puts one in the background and waits until the UI answers. Everything lies in one
folder (variable HEADWATER_SERVICE, default .service): Dagster's home, the data of Postgres, logs.
Variables: HEADWATER_HOST and HEADWATER_PORT (of the UI), DAGSTER_PG_HOST and others of
deploy/env.example for a Postgres elsewhere, HEADWATER_DEFINITIONS.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from assets._dvc import ROOT
from ssl_core.artifacts import read_json, write_bytes, write_json
from ssl_core.errors import HeadwaterError

from . import postgres
from .launcher import CODE_PORT, answers
from .services import GRACE, Service, tell

DEPLOY = Path(__file__).parent / "deploy"
MODULE = "pipelines.definitions"
STATE, LOCK, SECRET = "state.json", "lock", "postgres.password"
LOADING, UNREACHED = "loading", "DagsterUserCodeUnreachableError"
LOGS = "output"  # Dagster keeps a folder "logs" of its own
START = 180.0  # seconds until the UI answers


def folder() -> Path:
    """Where the services of this project keep their files."""
    return Path(os.environ.get("HEADWATER_SERVICE", ROOT / ".service")).absolute()


def address() -> tuple[str, int]:
    """Host and port of the UI."""
    host = os.environ.get("HEADWATER_HOST", "127.0.0.1")
    return host, int(os.environ.get("HEADWATER_PORT", "3000"))


def url() -> str:
    return "http://{}:{}".format(*address())


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind((postgres.HOST, 0))
        return int(s.getsockname()[1])


# ---- all of them -------------------------------------------------------------------------------


def settle(home: Path) -> dict[str, str]:
    """Dagster's home: dagster.yaml, workspace.yaml and the variables that both need."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(DEPLOY / "dagster.yaml", home / "dagster.yaml")
    code = free_port()
    place = {"host": "127.0.0.1", "port": code, "location_name": "headwater"}
    write_bytes(
        home / "workspace.yaml", json.dumps({"load_from": [{"grpc_server": place}]}).encode()
    )
    found = {
        "DAGSTER_HOME": str(home),
        "DO_NOT_TRACK": "1",
        CODE_PORT: str(code),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if "DAGSTER_PG_HOST" not in os.environ:
        found |= {
            "DAGSTER_PG_HOST": postgres.HOST,
            "DAGSTER_PG_PORT": str(free_port()),
            "DAGSTER_PG_USERNAME": postgres.USER,
            "DAGSTER_PG_PASSWORD": postgres.password(home / SECRET),
            "DAGSTER_PG_DB": postgres.DATABASE,
        }
    return found


def services(home: Path, env: dict[str, str]) -> list[Service]:
    """In the order in which they need each other; our own Postgres unless there is another.

    A daemon that finds no code server gives up what it was about to start again.
    """
    host, port = address()
    python, space = [sys.executable, "-m"], ["-w", str(home / "workspace.yaml")]
    module = os.environ.get("HEADWATER_DEFINITIONS", MODULE)
    server = ["dagster", "code-server", "start", "-h", "127.0.0.1", "-m", module]
    where = ["-p", env[CODE_PORT], "--location-name", "headwater"]
    web = ["dagster_webserver", "-h", host, "-p", str(port), *space]

    def storage() -> bool:
        own = "DAGSTER_PG_PASSWORD" in env
        return not own or postgres.ready(int(env["DAGSTER_PG_PORT"]), env["DAGSTER_PG_PASSWORD"])

    def code() -> bool:
        return storage() and answers("127.0.0.1", int(env[CODE_PORT]))

    return [
        *database(home, env),
        Service("code", [*python, *server, *where], storage, env=env, everyone=True),
        Service("daemon", [*python, "dagster._daemon", "run", *space], code, env=env),
        Service("web", [*python, *web], storage, env=env),
    ]


def database(home: Path, env: dict[str, str]) -> list[Service]:
    """Our own Postgres, unless the environment names another."""
    if "DAGSTER_PG_PASSWORD" not in env:
        return []
    data = Path(os.environ.get("HEADWATER_PG_DATA", home / "postgres"))
    if not (data / postgres.VERSION).exists():
        postgres.create(data, env["DAGSTER_PG_PASSWORD"])
    command = postgres.command(data, int(env["DAGSTER_PG_PORT"]))
    # SIGINT: a fast shutdown; at SIGTERM it would wait for its clients.
    return [Service("postgres", command, user=postgres.stand_in(), stop=signal.SIGINT)]


def note(home: Path, all_: list[Service]) -> None:
    """Who runs, for ``status``, and for a successor who has to end them."""
    rows = {"supervisor": _row(os.getpid())}
    rows |= {s.name: _row(s.process.pid) for s in all_ if s.process}
    write_json(home / STATE, rows)


def _row(pid: int) -> dict[str, Any]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return {"pid": pid, "born": psutil.Process(pid).create_time()}
    return {"pid": pid, "born": 0.0}


def living(home: Path) -> dict[str, int]:
    """Name and process id of every service that runs; ids of others do not count."""
    rows = read_json(home / STATE) if (home / STATE).exists() else {}
    found = {}
    for name, row in rows.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(row["pid"])
            same = abs(process.create_time() - row["born"]) < 1
            if same and process.status() != psutil.STATUS_ZOMBIE:
                found[name] = row["pid"]
    return found


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """At most one supervisor per folder; what a killed one left behind is ended first.

    Raises:
        HeadwaterError: one is at work.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeadwaterError(home, "is served already", "python -m pipelines.up stop") from None
        for name, pid in living(home).items():
            if name == "postgres":
                os.kill(pid, signal.SIGINT)  # killed, it would have to recover
                psutil.Process(pid).wait(GRACE)
            elif name != "supervisor":
                tell(pid, signal.SIGKILL)
        yield


def run() -> None:
    """Start all, start again what ends, until SIGTERM or SIGINT."""
    home, stopping = folder(), []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    with alone(home):
        all_ = services(home, settle(home))
        try:
            while not stopping:
                started = [service.tend(home / LOGS, ROOT) for service in all_]
                if any(started):
                    note(home, all_)
                time.sleep(0.2)
        finally:
            for service in reversed(all_):  # the daemon before the code server, Postgres last
                service.finish()
            (home / STATE).unlink(missing_ok=True)


# ---- commands ----------------------------------------------------------------------------------


def ask(query: str, timeout: float = 10.0, variables: Any = None) -> dict[str, Any]:
    """GraphQL of the webserver."""
    body = json.dumps({"query": query, "variables": variables or {}}).encode()
    request = urllib.request.Request(f"{url()}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return dict(json.load(answer)["data"])


HEALTH = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"
PLACES = "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus \
locationOrLoadError { __typename ... on PythonError { message } } } } } }"
RELOAD = 'mutation { reloadRepositoryLocation(repositoryLocationName: "headwater") { __typename \
... on WorkspaceLocationEntry { loadStatus locationOrLoadError { __typename \
... on PythonError { message } } } } }'


def look() -> dict[str, str]:
    """Each part and its state; ``ok`` is well."""
    up = living(folder())
    found = {name: "ok" if name in up else "down" for name in ("code", "daemon", "web")}
    try:
        daemons = ask(HEALTH)["instance"]["daemonHealth"]["allDaemonStatuses"]
        entries = ask(PLACES)["workspaceOrError"]["locationEntries"]
    except (urllib.error.URLError, OSError):
        return found | {"ui": f"{url()} does not answer"}
    found |= {d["daemonType"].lower(): "ok" for d in daemons if d["required"] and d["healthy"]}
    found |= {
        d["daemonType"].lower(): "no heartbeat"
        for d in daemons
        if d["required"] and not d["healthy"]
    }
    for entry in entries:
        loaded = entry["locationOrLoadError"] or {"__typename": "loading"}
        good = loaded["__typename"] == "RepositoryLocation"
        said = loaded.get("message", LOADING).strip()
        state = "ok" if good else LOADING if UNREACHED in said else said
        found[f"code location {entry['name']}"] = state
    return found | {"ui": "ok"}


def start() -> None:
    """In the background; returns when all is well.

    Raises:
        HeadwaterError: it is not well in time; the logs are named.
    """
    home = folder()
    if "supervisor" not in living(home):
        (home / LOGS).mkdir(parents=True, exist_ok=True)
        with (home / LOGS / "supervisor.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.up", "run"],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
    else:
        process = None
    end = time.monotonic() + START
    while (found := look()) and any(state != "ok" for state in found.values()):
        dead = process is not None and process.poll() is not None
        wrong = any(s not in ("ok", LOADING) for k, s in found.items() if k.startswith("code loc"))
        if dead or wrong or time.monotonic() > end:
            bad = ", ".join(f"{k}: {v}" for k, v in found.items() if v != "ok")
            raise HeadwaterError("services", f"are not well ({bad})", f"read {home / LOGS}")
        time.sleep(0.5)
    print(f"{url()}   logs: {home / LOGS}   stop: make down")


def stop() -> None:
    """End the supervisor, which ends the rest; what it left behind too."""
    pid = living(folder()).get("supervisor")
    if pid is None:
        print("nothing runs")
        return
    os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(5 * GRACE)
    print("stopped")


def status() -> None:
    """One line each; exit code 1 if one is not well."""
    found = look()
    for name, state in found.items():
        print(f"{name:<28} {state}")
    if any(state != "ok" for state in found.values()):
        sys.exit(1)


def reload() -> None:
    """Load the code again; runs that go on keep the code that they began with.

    Raises:
        HeadwaterError: the new code does not load. The message is Python's.
    """
    done = ask(RELOAD, START)["reloadRepositoryLocation"]
    loaded = done.get("locationOrLoadError") or {}
    if loaded.get("__typename") != "RepositoryLocation":
        said = loaded.get("message", done)
        raise HeadwaterError("code location", f"does not load: {said}", "mend it, reload again")
    print("reloaded")


COMMANDS = {f.__name__: f for f in (run, start, stop, status, reload)}


def main() -> None:
    """One of COMMANDS."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in COMMANDS:
        sys.exit(f"usage: python -m pipelines.up {'|'.join(COMMANDS)}")
    try:
        COMMANDS[name]()
    except HeadwaterError as error:
        sys.exit(f"headwater: {error}")


if __name__ == "__main__":
    main()
