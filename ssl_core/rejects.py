"""Samples that cannot be read, found while training: listed once each, and not too many."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from .artifacts import append_line
from .errors import HeadwaterError

SHARE, LEAST = 0.01, 10  # of the split's samples; so many may be corrupt in a small split
SHOWN = 5

Record = dict[str, Any]


class Rejects:
    """The list, and the file that it is kept in if there is one (JSON lines).

    Ranks and later runs may append to the same file: each learns what the others have found,
    so that the limit is one of all.
    """

    def __init__(self, total: int, path: Path | None) -> None:
        self.path, self.limit = path, max(LEAST, int(SHARE * total))
        self.found: list[Record] = []
        self._known: set[tuple[str, str]] = set()
        self._read = 0  # bytes of the file
        self._lock = threading.Lock()
        self._learn()

    def _take(self, record: Record) -> None:
        name = (record["shard"], record["key"])
        if name not in self._known:
            self._known.add(name)
            self.found.append(record)

    def _learn(self) -> None:
        """Read what was appended since, up to the last whole line."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            whole = stream.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # torn by a crash while it was appended

    def add(self, key: str, shard: str, reason: str) -> None:
        """List a sample, once.

        Raises:
            HeadwaterError: these are too many; names the first.
        """
        with self._lock:
            self._learn()
            if (shard, key) in self._known:
                return
            record = {"key": key, "shard": shard, "reason": reason}
            if self.path is not None:
                append_line(self.path, record)
                self._learn()
            self._take(record)
            if len(self.found) > self.limit:
                self._stop()

    def _stop(self) -> None:
        first = ", ".join(f"{r['shard']}:{r['key']} ({r['reason']})" for r in self.found[:SHOWN])
        listed = f"; all are in {self.path}" if self.path else ""
        raise HeadwaterError(
            f"{len(self.found)} corrupt samples",
            f"more than the {self.limit} that may be left out: {first}, ...{listed}",
            "run stage shard again, or dvc pull, and delete the list",
        )
