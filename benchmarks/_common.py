"""Paired measurement, and how its result is shown: a table, JSON and a picture.

Every round runs all cases one after the other, in turned order every second round, so that a
slow minute of the machine falls on all of them. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Work = Callable[[], int]  # does some work, returns how many units (images) were done
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Row:
    """One case: units per second over the rounds, and its ratio to the base case."""

    group: str
    case: str
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def synchronise() -> None:
    """Wait for the accelerator, if any: its work is queued."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(work: Work, clock: Clock = time.perf_counter) -> float:
    """Units per second of one call."""
    synchronise()
    start = clock()
    units = work()
    synchronise()
    return units / (clock() - start)


def compare(
    group: str,
    cases: Mapping[str, Work],
    base: str,
    rounds: int = 5,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Measure all cases in alternation; ``base`` is the one the others are divided by.

    ``clock``: ``time.process_time`` where others use the machine and the work is all the CPU's.
    """
    names = list(cases)
    for _ in range(warmup):
        for name in names:
            cases[name]()
    seen: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            seen[name].append(rate(cases[name], clock))
    return [_row(group, name, seen[name], seen[base]) for name in names]


def _row(group: str, name: str, rates: Sequence[float], base: Sequence[float]) -> Row:
    ratios = [a / b for a, b in zip(rates, base, strict=True)]
    middle, ratio = statistics.median(rates), statistics.median(ratios)
    spread = (min(rates), max(rates), ratio, min(ratios), max(ratios))
    return Row(group, name, middle, *spread, len(rates))


def markdown(rows: Sequence[Row], unit: str = "img/s") -> str:
    """The table: median and range over the rounds."""
    lines = [f"| | case | {unit} | range | ratio | range |", "|-|-|-|-|-|-|"]
    for r in rows:
        lines.append(
            f"| {r.group} | {r.case} | {r.median:.1f} | {r.low:.1f}–{r.high:.1f} "
            f"| {r.ratio:.2f} | {r.ratio_low:.2f}–{r.ratio_high:.2f} |"
        )
    return "\n".join(lines)


def picture(rows: Sequence[Row], path: Path, title: str, unit: str = "img/s") -> None:
    """A bar per case with its range, one panel per group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(r.group for r in rows))
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8, 1 + 0.45 * len(rows) + 0.5 * len(groups)), squeeze=False
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        mine = [r for r in rows if r.group == group][::-1]
        names = [f"{r.case}  ×{r.ratio:.2f}" for r in mine]
        sides = [[r.median - r.low for r in mine], [r.high - r.median for r in mine]]
        axis.barh(names, [r.median for r in mine], xerr=sides, color="#4c78a8", capsize=3)
        axis.set_title(group, fontsize=10, loc="left")
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(
    name: str, title: str, rows: Sequence[Row], unit: str = "img/s", **about: Any
) -> dict[str, Any]:
    """Print the table; write ``results/<name>.json`` and ``results/<name>.png``.

    ``about`` holds what a reader must know to repeat it: sizes, batch, versions of peers.
    """
    from ssl_core.artifacts import write_json

    about_machine = machine()
    found = {
        "name": name,
        "title": title,
        "unit": unit,
        "machine": about_machine,
        "about": about,
        "rows": [asdict(r) for r in rows],
    }
    write_json(RESULTS / f"{name}.json", found)
    picture(rows, RESULTS / f"{name}.png", title, unit)
    said = ", ".join(f"{k} {v}" for k, v in about_machine.items())
    print(f"\n## {title}\n\n{markdown(rows, unit)}\n\n{said}", flush=True)
    for key, value in about.items():
        print(f"- {key}: {value}")
    return found


def versions(*names: str) -> str:
    """Peers and their versions."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in names)


def one_core() -> None:
    """Keep this process, and its threads to come, on one core with one thread of torch each."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def against(row: Row, base: float) -> Row:
    """The row with its ratio to a rate that was measured in other rounds: no pairs."""
    return replace(
        row, ratio=row.median / base, ratio_low=row.low / base, ratio_high=row.high / base
    )
