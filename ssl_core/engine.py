"""Work on many images: by threads of this process, or by a Ray cluster (``scale.engine``).

Results come in order and are the same. A function that Ray runs is sent to processes that may lie
on other machines: it is a function of a module, or ``functools.partial`` of one, and what it reads
lies in S3 or on a file system that all machines share. headwater has to be installed there.

Ray Data runs it rather than Daft on Ray, or tasks of our own: measured in
``benchmarks/engines.py`` (results/engines.json).
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from .config import Scale
from .errors import HeadwaterError
from .parallel import ordered_map

A = TypeVar("A")
B = TypeVar("B")
STORE = 256 * 2**20  # bytes of the object store of a Ray that is started here
TRIES = 3  # to start it


def each(
    function: Callable[[A], B], items: Sequence[A], scale: Scale, ahead: int, chunk: int = 1
) -> Generator[B, None, None]:
    """``function`` of each item, in order; at most some ``ahead`` are held before they are taken.

    ``chunk`` items go to Ray at once; threads take them one by one.

    Raises:
        HeadwaterError: as ``function``; or Ray is asked for and not there.
    """
    if scale.engine == "local" or not items:
        yield from ordered_map(function, items, os.cpu_count() or 1, ahead)
        return
    with session(scale):
        yield from _by_ray(function, items, scale, chunk)


# ---- Ray ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def session(scale: Scale) -> Iterator[None]:
    """A connection to the cluster; one that was open before is used and left open.

    Raises:
        HeadwaterError: Ray is not installed, or does not answer.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        fix = "pip install 'headwater[ray]'"
        raise HeadwaterError("scale.engine: ray", "needs Ray", fix) from None
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE}
    own |= {"num_cpus": scale.workers} if scale.workers else {}
    there = {"address": scale.address} if scale.address else own
    _start(ray, scale, there)
    try:
        yield
    finally:
        ray.shutdown()


def _start(ray: Any, scale: Scale, where: dict[str, Any]) -> None:
    """Ray gives its own processes 15 s to begin, which a busy machine may not give them."""
    for left in range(TRIES - 1, -1, -1):
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **where)
            return
        except Exception as error:  # Ray raises what its parts raise
            ray.shutdown()
            if left:
                continue
            own = not scale.address
            place = "a Ray on this machine" if own else f"scale.address = '{scale.address}'"
            fix = "check `ray status`, or set scale.engine: local"
            raise HeadwaterError(place, f"does not start ({error})", fix) from None


def _work(function: Callable[[A], B], row: dict[str, Any]) -> dict[str, Any]:
    """In a worker: one chunk. Errors for the user come back as they are, not as Ray's."""
    try:
        found: Any = [function(item) for item in pickle.loads(row["items"])]
    except HeadwaterError as error:
        found = (str(error.value), error.rule, error.fix)
    return {"found": pickle.dumps(found)}


def _by_ray(
    function: Callable[[A], B], items: Sequence[A], scale: Scale, chunk: int
) -> Generator[B, None, None]:
    """Chunks as rows of a data set. Ray keeps their order, and works no further ahead than its
    object store holds.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    parts = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    rows = [{"items": pickle.dumps(list(part))} for part in parts]
    limit: dict[str, Any] = {"concurrency": scale.workers} if scale.workers else {}
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in data.map(partial(_work, function), **limit).iter_rows():
        found = pickle.loads(row["found"])
        if isinstance(found, tuple):
            raise HeadwaterError(*found)
        yield from found
