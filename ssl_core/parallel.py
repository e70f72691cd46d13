"""Threads for reading and decoding, which release the interpreter lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], threads: int, ahead: int
) -> Generator[B, None, None]:
    """Map in a thread pool, results in order, at most ``ahead`` + 1 items in flight.

    An exception in a thread is raised where its result would have been. Closing the iterator
    drops what has not begun and joins the threads.
    """
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="headwater")
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
