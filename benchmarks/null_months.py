"""How often the alarm is false: months and years in which nothing changes.

    python -m benchmarks.null_months [--months 1000] [--only gaussian-16-20]

Every run draws a reference and then batches of the same distribution, and goes through the real
detectors and the real alarm: each look compares a batch with all rows seen before. Reported with
its Clopper–Pearson interval: the share of runs with a false alarm when the looks are taken on 30
days running (a month), and when the same looks are spread evenly over a year, which is what
``alpha`` bounds. The last cases break the assumption (groups that are not declared) and mend it.

A p-value is valid for any number of rows and relabellings, so that both are small here: a look
sees at most ``ROWS`` rows of the batch and as many of the past.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core import alarm, plugins
from ssl_core.artifacts import read_json, write_json

from ._drift_data import Draw, gaussian, grouped, real

RESULT = Path(__file__).parent / "results" / "null_months.json"
ALPHA = 0.05
REFERENCE = 100
ROWS = 60
PERMUTATIONS = 19
DEFAULT = ("mmd", "domain_classifier")
KNOWN = ("google", "twitter", "fluent")


@dataclass(frozen=True)
class Case:
    """One line of the table. ``group``: rows that belong together and are declared to."""

    draw: Draw
    dimensions: int
    batch: int
    detectors: tuple[str, ...] = ("mmd",)
    looks: int = 30
    group: int = 1
    note: str = ""


def cases() -> dict[str, Case]:
    """By name; features are computed (and kept) only if a case wants them."""
    found = {
        f"gaussian-{d}-{n}": Case(gaussian(d), d, n) for n in (20, 100, 500) for d in (16, 512)
    }
    apart = grouped(gaussian(16), 10, 0.5)
    return found | {
        "emoji-16-20": Case(real(KNOWN, 16), 16, 20),
        "emoji-512-100": Case(real(KNOWN, 512), 512, 100, looks=52, note="52 looks"),
        "emoji-16-100-both": Case(real(KNOWN, 16), 16, 100, DEFAULT),
        "groups-declared": Case(apart, 16, 100, group=10, note="groups of 10, half the variance"),
        "groups-undeclared": Case(apart, 16, 100, note="the same, taken for single images"),
    }


def run(case: Case, seed: int) -> list[dict[str, float]]:
    """The p-values of each look of one run, by detector."""
    rng = np.random.default_rng(seed)
    total = REFERENCE + case.looks * case.batch
    rows = case.draw(total, rng)
    unit = np.arange(total) // case.group
    found = []
    for t in range(case.looks):
        start = REFERENCE + t * case.batch
        past = pick(unit[:start], ROWS // case.group, rng)
        now = start + pick(unit[start : start + case.batch], ROWS // case.group, rng)
        groups = (unit[past], unit[now]) if case.group > 1 else None
        p = {}
        for name in case.detectors:
            score = plugins.load("drift", name).score
            p[name] = score(rows[past], rows[now], rng, PERMUTATIONS, groups).p_value
        found.append(p)
    return found


def pick(unit: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most ``count`` random units."""
    names = np.unique(unit)
    if len(names) == len(unit):
        return rng.permutation(len(unit))[:count]
    return np.flatnonzero(np.isin(unit, rng.permutation(names)[:count]))


def alarms(p: Sequence[dict[str, float]], every: float) -> bool:
    """Whether looks ``every`` so many days apart raise the alarm."""
    state, first = alarm.State(), date(2025, 1, 1)
    for t, values in enumerate(p):
        day = (first + timedelta(days=round(t * every))).isoformat()
        state = alarm.step(state, day, values, ALPHA, len(values))
        if state.alarm:
            return True
    return False


def share(hits: int, runs: int) -> dict[str, float]:
    """A share with its exact 95 % interval (Clopper & Pearson 1934)."""
    from scipy.stats import binomtest

    found = binomtest(hits, runs).proportion_ci(0.95, "exact")
    return {"hits": hits, "share": hits / runs, "low": found.low, "high": found.high}


def measure(case: Case, months: int) -> dict[str, Any]:
    """One line of the table."""
    start = time.perf_counter()
    found = [run(case, seed) for seed in range(months)]
    naive = ALPHA / len(case.detectors)
    return {
        "dimensions": case.dimensions,
        "batch": case.batch,
        "detectors": case.detectors,
        "looks": case.looks,
        "runs": months,
        "note": case.note,
        "month": share(sum(alarms(p[:30], 1) for p in found), months),
        "year": share(sum(alarms(p, 364 / case.looks) for p in found), months),
        "per_look": share(
            sum(min(v.values()) <= naive for p in found for v in p), months * case.looks
        ),
        "any_look": share(sum(any(min(v.values()) <= naive for v in p) for p in found), months),
        "seconds": round(time.perf_counter() - start),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    head = ("case", "runs × looks", "a month", "a year (bound 5 %)", "95 %", "p ≤ 5 % on any look")
    lines = [f"| {' | '.join(head)} |", "|-|-|-|-|-|-|"]
    for name, r in rows.items():
        year = r["year"]
        cells = (
            f"{name} {r['note']}".strip(),
            f"{r['runs']} × {r['looks']}",
            f"{r['month']['share']:.1%}",
            f"{year['share']:.1%}",
            f"{year['low']:.1%}–{year['high']:.1%}",
            f"{r['any_look']['share']:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--months", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases")
    given = parser.parse_args()
    rows: dict[str, Any] = {}
    for name, case in cases().items():
        if given.only and name not in given.only:
            continue
        found = measure(case, given.months)
        rows = read_json(RESULT)["rows"] if RESULT.exists() else {}  # of other processes too
        rows[name] = found
        about = {"alpha": ALPHA, "reference": REFERENCE, "rows": ROWS, "permutations": PERMUTATIONS}
        write_json(RESULT, {"about": about, "rows": rows})
        print(name, rows[name]["year"], rows[name]["seconds"], "s", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
