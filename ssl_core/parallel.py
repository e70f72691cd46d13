"""Threads for reading and decoding, which release the interpreter lock, and their memory."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    threads: int,
    ahead: int,
    setup: Callable[[], None] | None = None,
) -> Generator[B, None, None]:
    """Map in a thread pool, results in order, at most ``ahead`` + 1 items in flight.

    An exception in a thread is raised where its result would have been. Closing the iterator
    drops what has not begun and joins the threads. ``setup`` runs first in each thread.
    """
    pool = ThreadPoolExecutor(max(1, threads), "headwater", initializer=setup)
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def look_ahead(
    items: Iterable[A],
    parts: Callable[[A], Iterable[B]],
    begin: Callable[[B], object],
    most: int,
    longest: int,
) -> Generator[A, None, None]:
    """Yield the items as they are, telling ``begin`` of their parts before they are needed.

    It looks ahead until ``most`` different parts are in sight, or ``longest`` items. ``begin``
    hears of a part when it comes into sight, and again if it went out of sight in between.
    """
    source, ahead, seen = iter(items), deque[tuple[A, list[B]]](), Counter[B]()
    more = True
    while True:
        while more and len(seen) < most and len(ahead) < longest:
            try:
                item = next(source)
            except StopIteration:
                more = False
                break
            found = list(parts(item))
            for part in found:
                if part not in seen:
                    begin(part)
                seen[part] += 1
            ahead.append((item, found))
        if not ahead:
            return
        item, found = ahead.popleft()
        seen.subtract(found)
        seen = +seen  # only what is still in sight
        yield item


def keep_memory() -> None:
    """Let this process keep what it frees, for its next batch. Linux with glibc; else nothing.

    glibc returns large blocks to the system at once, and the next batch pays for every page
    again: 6 to 20 % of the time from JPEG to views on one core. The peak stays what it was.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: which does not shrink below this
