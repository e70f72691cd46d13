"""Where the time of a training step goes: one JSON line per step, in a file of its own.

Wall-clock numbers differ between identical runs, so they stay out of log.jsonl and out of the
product (both are equal to the bit): ``telemetry.jsonl`` lies in the work folder, and stage
pretrain keeps it under ``runs/telemetry/`` by the product it belongs to.

Spans cost a clock reading or two queued CUDA events each; nothing waits for the device before
the lines are written, every FLUSH steps.
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .artifacts import LINEAGE, append_line, read_lines, sha256_file

FILE, FLUSH = "telemetry.jsonl", 20
HOST = ("wait", "checkpoint")  # spans in which the host waits; the rest is the device's time
SPANS = ("wait", "augment", "forward_backward", "optimiser", "checkpoint")
# Dense peak in teraflops by device name: (bf16, fp32 without tf32, torch's default for products).
# NVIDIA's data sheets.
PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10G": (70.0, 35.0),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
}

Clock = Callable[[], float]
Pair = tuple[torch.cuda.Event, torch.cuda.Event]


def peak_flops(device: torch.device, bf16: bool) -> tuple[float, str]:
    """FLOP/s the device can reach, and how that is known: a data sheet, or a measured product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peaks in PEAKS.items():  # longer names first where one holds another
            if known in name:
                return peaks[0 if bf16 else 1] * 1e12, f"data sheet of {known}"
    dtype = torch.bfloat16 if bf16 else torch.float32
    return _measured(device, dtype), f"measured {dtype} matrix product"


def _measured(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    x = torch.ones(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        _synchronise(device)
        start = time.perf_counter()
        x @ x
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes ever held: on the GPU by torch, else resident of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Telemetry:
    """Collects one row per step.

    Args:
        path: where lines go; None: nowhere (ranks other than the first).
        bf16: the step computes in bf16, whose peak then counts.
    """

    def __init__(
        self,
        device: torch.device,
        path: Path | None = None,
        bf16: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.device, self.path, self.bf16, self.clock = device, path, bf16, clock
        self.flops: float | None = None  # of one step on this rank
        self.about: dict[str, Any] = {}  # said once: the peak, where views are made
        self._began: float | None = None
        self._host: dict[str, float] = {}
        self._events: dict[str, list[Pair]] = {}
        self._rows: list[tuple[dict[str, Any], dict[str, list[Pair]]]] = []
        self._recent: deque[dict[str, float]] = deque(maxlen=FLUSH)

    def begin(self) -> None:
        """Start the clock of the first step, after everything that happens once."""
        self._began = self.clock()
        self._host, self._events = {}, {}

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the time inside to this step's ``name`` (one of SPANS)."""
        if self.device.type == "cuda" and name not in HOST:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            yield
            pair[1].record()
            self._events.setdefault(name, []).append(pair)
            return
        start = self.clock()
        try:
            yield
        finally:
            self._host[name] = self._host.get(name, 0.0) + self.clock() - start

    def set_flops(self, flops: float) -> None:
        """FLOPs of one step on this rank, counted once; the peak is looked up or measured now."""
        self.flops = flops
        if self.path is not None:
            peak, source = peak_flops(self.device, self.bf16)
            self.about |= {"flops": flops, "peak_flops": peak, "peak": source}

    def end_step(self, step: int, images: int) -> None:
        """Close the row of ``step``, in which ``images`` were seen over all ranks."""
        now = self.clock()
        if self._began is None:
            self.begin()
            return
        seconds = max(now - self._began, 1e-9)
        row: dict[str, Any] = {"step": step, "images": images, "seconds": seconds, **self._host}
        self._recent.append({"seconds": seconds, "wait": self._host.get("wait", 0.0)})
        self._rows.append((row, self._events))
        self._began, self._host, self._events = now, {}, {}
        if len(self._rows) >= FLUSH:
            self.flush()

    def short(self) -> dict[str, float]:
        """For the progress bar: share of recent time spent waiting for data, and MFU."""
        total = sum(r["seconds"] for r in self._recent)
        if not total:
            return {}
        found = {"wait": sum(r["wait"] for r in self._recent) / total}
        mean = total / len(self._recent)
        return found | self._mfu(mean)

    def _mfu(self, seconds: float) -> dict[str, float]:
        """Share of the device's peak that a step of this length used, if known."""
        if self.flops is None or "peak_flops" not in self.about:
            return {}
        return {"mfu": self.flops / seconds / self.about["peak_flops"]}

    def flush(self) -> None:
        """Write the rows so far. Waits for the device's events of these steps."""
        rows, self._rows = self._rows, []
        if not rows or self.path is None:
            return
        memory = peak_memory(self.device)
        lines = [json.dumps(self._finished(*row) | {"peak_bytes": memory}) for row in rows]
        with self.path.open("a") as stream:  # not fsynced: a lost line costs nothing
            stream.write("\n".join(lines) + "\n")

    def _finished(self, row: dict[str, Any], events: dict[str, list[Pair]]) -> dict[str, Any]:
        for name, pairs in events.items():
            pairs[-1][1].synchronize()
            row[name] = sum(start.elapsed_time(end) for start, end in pairs) / 1000
        return (
            row | self._mfu(row["seconds"]) | {"images_per_second": row["images"] / row["seconds"]}
        )

    def close(self) -> None:
        """Write what is left, and what the shares of the peak refer to."""
        self.flush()
        if self.path is not None and self.about:
            append_line(self.path, {"about": self.about})


def summary(path: Path) -> dict[str, float]:
    """A run in a few numbers: medians per step and shares of the whole time; empty without rows.

    The slow first step does not count if there are others. ``other`` is time outside the spans.
    """
    rows = [r for r in read_lines(path) if "step" in r]
    rows = rows[1:] or rows
    if not rows:
        return {}
    total = sum(r["seconds"] for r in rows)
    shares = {f"share/{n}": sum(r.get(n, 0.0) for r in rows) / total for n in SPANS}
    found = {
        "images_per_second": statistics.median(r["images_per_second"] for r in rows),
        "step_seconds": statistics.median(r["seconds"] for r in rows),
        "peak_bytes": float(rows[-1]["peak_bytes"]),
        **shares,
        "share/other": max(0.0, 1 - sum(shares.values())),
    }
    known = [r["mfu"] for r in rows if "mfu" in r]
    return found | ({"mfu": statistics.median(known)} if known else {})


def home(runs: Path, product: Path) -> Path:
    """Where the telemetry of the training that made ``product`` is kept."""
    return runs / "telemetry" / f"{sha256_file(product / LINEAGE)[:12]}.jsonl"
