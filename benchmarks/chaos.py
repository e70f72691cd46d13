"""Does the whole chain survive kill -9 at any moment, full disks and clocks that jump?

    python -m benchmarks.chaos [--kills 100] [--seed 0] [--save]

Runs the chain once on tiles of scikit-learn's photographs without a break. Then it starts the same
chain again and again and kills its process group after a log-uniform delay. After every kill
`headwater doctor` must be clean, or name the repair of each line that is not. A chain that comes to
its end in spite of all kills must have made the same products, byte for byte.

Then each fault of ``FAULTS`` is done to a whole project: the next run must end well or with one
clear error, and once the fault is gone the products must be those of the first run. ``--save``
writes ``results/chaos.json``.

Processes are forked from one that has imported what the stages import (as in ``kills``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "GX_ANALYTICS_ENABLED": "false"}  # before torch

from benchmarks.kills import kill

RESULT = Path(__file__).resolve().parent / "results" / "chaos.json"
TESTS = Path(__file__).resolve().parent.parent / "tests"
SHORTEST = 0.05  # seconds until a kill; the longest is the length of a whole run
PRODUCTS = ("manifest", "seed_embeddings", "curated", "shards", "pretrain", "embeddings")
PRODUCTS += ("evaluation", "promotion")
PATIENCE = 600.0
YEARS = 40 * 365 * 86400.0


# ---- processes ---------------------------------------------------------------------------------


def start(prepare: Callable[[], None] = lambda: None, log: str = "output.txt") -> int:
    """The chain in a process group of its own; returns its number."""
    if child := os.fork():
        return child
    code = 3
    try:
        os.setsid()
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        prepare()
        code = chain()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def chain() -> int:
    """`headwater run --plain` without its page: 0, or 1 with the error that a user meets."""
    from ssl_core.commands import run
    from ssl_core.config import Paths, load
    from ssl_core.errors import HeadwaterError

    try:
        run.one_by_one(["promote"], load(), Paths(), False)
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        return 1
    return 0


def wait(child: int, seconds: float) -> int | None:
    """Its exit code, or None if it is still running after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def finish(prepare: Callable[[], None] = lambda: None) -> tuple[int | None, str]:
    """Run to the end: exit code and output."""
    code = wait(start(prepare), PATIENCE)
    return code, Path("output.txt").read_text(errors="replace")


# ---- what must hold ----------------------------------------------------------------------------


def complaints() -> list[str]:
    """Failures that doctor finds and has no repair for."""
    from ssl_core.commands import doctor
    from ssl_core.config import Paths, load

    lines = doctor.examine(load(), Paths())
    return [f"{x.name}: {x.text}" for x in lines if x.level == "fail" and not x.repair]


def products() -> dict[str, str]:
    """Product -> digest of all its files; times of day stand in none of them."""
    from ssl_core.artifacts import sha256_tree
    from ssl_core.config import Paths

    paths = Paths()
    return {name: sha256_tree(getattr(paths, name)) for name in PRODUCTS}


def require(holds: bool, what: str) -> None:
    """Stop with what did not hold."""
    if not holds:
        raise SystemExit(f"{what}\n{Path('output.txt').read_text(errors='replace')[-3000:]}")


def reset() -> None:
    """As if nothing had run."""
    for folder in ("runs", "reports", "data/products", "data/registry", "data/history"):
        shutil.rmtree(folder, ignore_errors=True)


# ---- kills -------------------------------------------------------------------------------------


def hit() -> str:
    """The stage that was at work: the first without a product."""
    from ssl_core.config import Paths

    paths = Paths()
    names = ("manifest", "validation", *PRODUCTS[1:])
    missing = (n for n in names if not (getattr(paths, n) / "lineage.json").exists())
    return next(missing, "after the last")


def killed(kills: int, seconds: float, expected: dict[str, str], seed: int) -> Counter[str]:
    """Kill so often; returns the stages that were hit."""
    hits, rng, chains = Counter[str](), random.Random(seed), 0
    while hits.total() < kills:
        reset()
        code = None
        while code is None:
            left = hits.total() < kills
            delay = math.exp(rng.uniform(math.log(SHORTEST), math.log(seconds)))
            child = start()
            code = wait(child, delay if left else PATIENCE)
            if code is None:
                kill(child)
                hits[hit()] += 1
                require(not (bad := complaints()), f"doctor after kill {hits.total()}: {bad}")
        require(code == 0, f"the chain ended with {code} after {hits.total()} kills")
        require(products() == expected, f"products differ after {hits.total()} kills")
        chains += 1
        print(f"{hits.total():>4} kills, {chains} chains equal", flush=True)
    return hits


# ---- faults ------------------------------------------------------------------------------------

Fault = Callable[[], contextlib.AbstractContextManager[Callable[[], None]]]


def nothing() -> None:
    """No change in the process that runs the chain."""


@contextmanager
def _mounted(options: str) -> Iterator[Callable[[], None]]:
    """Products lie on a file system of their own."""
    reset()
    products_ = Path("data/products").absolute()
    products_.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", products_], check=True)
    try:
        yield nothing
    finally:
        subprocess.run(["umount", products_], check=True)


def _jumped(seconds: float) -> Callable[[], None]:
    def prepare() -> None:
        real = time.time
        time.time = lambda: real() + seconds

    return prepare


@contextmanager
def clock_ahead() -> Iterator[Callable[[], None]]:
    """The clock is forty years ahead."""
    reset()
    yield _jumped(YEARS)


@contextmanager
def clock_behind() -> Iterator[Callable[[], None]]:
    """The clock is forty years behind what lies on disk."""
    reset()
    yield _jumped(-YEARS)


@contextmanager
def missing_shard() -> Iterator[Callable[[], None]]:
    """A shard is gone, and everything after it has to be made anew."""
    from ssl_core.config import Paths

    for name in ("pretrain", "embeddings", "evaluation", "promotion"):
        shutil.rmtree(getattr(Paths(), name))
    shutil.rmtree("runs")
    min(Paths().shards.glob("*.tar")).unlink()
    yield nothing


@contextmanager
def corrupt_caches() -> Iterator[Callable[[], None]]:
    """Every file in runs/ is cut in half and begins with other bytes."""
    from ssl_core.config import Paths

    for name in ("manifest", "seed_embeddings", "pretrain"):
        shutil.rmtree(getattr(Paths(), name))
    for file in Path("runs").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x00damaged" + file.read_bytes()[: file.stat().st_size // 2])
    yield nothing


@contextmanager
def two_at_once() -> Iterator[Callable[[], None]]:
    """Another run of the same chain is at work."""
    reset()
    other = start(log="other.txt")
    try:
        yield nothing
    finally:
        if wait(other, PATIENCE) is None:
            kill(other)


FAULTS: dict[str, Fault] = {
    "full disk": partial(_mounted, "size=200k"),  # too small for them
    "read-only products": partial(_mounted, "ro"),
    "clock ahead": clock_ahead,
    "clock behind": clock_behind,
    "missing shard": missing_shard,
    "corrupt caches": corrupt_caches,
    "two runs at once": two_at_once,
}


def mend() -> None:
    """What a user does about a missing shard: doctor names the command."""
    from ssl_core.commands import doctor
    from ssl_core.config import Paths, load

    lines = doctor.examine(load(), Paths())
    if any(x.level == "fail" and x.name == "shards" for x in lines):
        shutil.rmtree(Paths().shards)


def faulty(name: str, expected: dict[str, str]) -> dict[str, Any]:
    """Do one fault, run into it, take it away, run again; what the user saw."""
    with FAULTS[name]() as prepare:
        code, output = finish(prepare)
        require(code in (0, 1), f"{name}: ended with {code}, not with a clear error")
        require("Traceback" not in output, f"{name}: a traceback")
        require(not (bad := complaints()), f"doctor during {name}: {bad}")
    said = [x for x in output.splitlines() if x.startswith("headwater:")]
    mend()
    code, _ = finish()
    require(code == 0, f"after {name}: the chain ended with {code}")
    require(products() == expected, f"after {name}: products differ")
    return {"during": said[-1][:300] if said else "ended well", "afterwards": "equal products"}


# ---- all ---------------------------------------------------------------------------------------


def load_all() -> None:
    """Import once what every stage imports."""
    sys.path.insert(0, str(TESTS))
    import sklearn.linear_model  # noqa: F401
    import timm  # noqa: F401

    from ssl_core.__main__ import CHAIN

    for name in CHAIN:
        importlib.import_module(f"ssl_core.stages.{name}")


def main() -> None:
    """Read the command line, print what was hit and what users saw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--save", action="store_true", help="write results/chaos.json")
    given = parser.parse_args()
    load_all()
    from conftest import fill

    from ssl_core.artifacts import write_json

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        fill(Path(name))
        began = time.monotonic()
        code, _ = finish()
        seconds = time.monotonic() - began
        require(code == 0, f"the first run ended with {code}")
        expected = products()
        print(f"{seconds:.1f} s without a break", flush=True)
        hits = killed(given.kills, seconds, expected, given.seed)
        faults = {}
        for fault in given.faults:
            faults[fault] = faulty(fault, expected)
            print(f"{fault}: {faults[fault]['during']}", flush=True)
    print(f"{hits.total()} of {given.kills} kills survived: {dict(hits.most_common())}")
    if given.save:
        about = {"kills": given.kills, "seed": given.seed, "seconds_without_a_break": seconds}
        write_json(RESULT, {"about": about, "hits": dict(hits.most_common()), "faults": faults})


if __name__ == "__main__":
    main()
