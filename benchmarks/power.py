"""How soon a change is found, and how often an alarm is false, beside single tests and peers.

    python -m benchmarks.power [--runs 20] [--peers DIR] [--only ours peers]

Real features: the reference and the quiet days hold glyphs of three vendors; from one day on a
share of each day's images is of a vendor never seen. Everyone is given the same rows. Peers run
with their defaults in processes of their own (``peers_drift/README.md``).

A null year has 52 weekly looks. Delay is counted from the first changed day on, 1 being that day;
a run with an alarm before the change counts as false there and is left out of the delay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core import alarm, plugins
from ssl_core.artifacts import read_json, write_json

from ._drift_data import real
from .null_months import KNOWN, share

HERE = Path(__file__).parent
RESULT = HERE / "results" / "power.json"
ALPHA = 0.05
DIMENSIONS, REFERENCE, BATCH = 16, 400, 100
QUIET, CHANGED, YEAR = 8, 12, 52
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)  # of a changed day's images; 0.0: the null year
PERMUTATIONS = 199
DETECTORS = ("mmd", "domain_classifier", "frechet")
OURS = ("mmd", "domain_classifier")  # the default of deploy.detectors
PEERS = ("alibi-detect", "evidently", "nannyml")


def rows(new: float, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """References (R, N, D) and days (R, T, M, D)."""
    known, other = real(KNOWN, DIMENSIONS), real(("openmoji",), DIMENSIONS)
    references, days = [], []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        references.append(known(REFERENCE, rng))
        own = []
        for t in range(QUIET + CHANGED if new else YEAR):
            count = round(new * BATCH) if t >= QUIET else 0
            own.append(np.concatenate([known(BATCH - count, rng), other(count, rng)]))
        days.append(own)
    return np.array(references), np.array(days)


def p_values(reference: np.ndarray, days: np.ndarray, seed: int) -> list[dict[str, float]]:
    """Each day against all before it, as stage monitor does."""
    rng, past, found = np.random.default_rng(seed), reference, []
    for day in days:
        drawn = past[rng.permutation(len(past))[: 4 * len(day)]]
        found.append(
            {
                name: plugins.load("drift", name).score(drawn, day, rng, PERMUTATIONS).p_value
                for name in DETECTORS
            }
        )
        past = np.concatenate([past, day])
    return found


def sequential(p: list[dict[str, float]]) -> list[bool]:
    """Whether the alarm is on after each weekly look."""
    state, on, first = alarm.State(), [], date(2025, 1, 6)
    for t, values in enumerate(p):
        day = (first + timedelta(weeks=t)).isoformat()
        state = alarm.step(state, day, {n: values[n] for n in OURS}, ALPHA, len(OURS))
        on.append(bool(state.alarm))
    return on


def ours(new: float, runs: int) -> dict[str, list[list[bool]]]:
    """Alarms by way and run: the sequential alarm, and each detector by itself at 5 % a look."""
    references, days = rows(new, runs)
    p = [p_values(r, d, i) for i, (r, d) in enumerate(zip(references, days, strict=True))]
    single = {f"{n}, 5 % a look": [[v[n] <= ALPHA for v in run] for run in p] for n in DETECTORS}
    return {"headwater": [sequential(run) for run in p], **single}


def peer(name: str, folder: Path, new: float, runs: int) -> dict[str, Any]:
    """A peer's alarms, or why there are none."""
    references, days = rows(new, runs)
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "in.npz", Path(work) / "out.json"
        np.savez(source, reference=references, days=days)
        script = HERE / "peers_drift" / f"run_{name.replace('-', '_')}.py"
        command = [str(folder / name / "bin/python"), "-W", "ignore", str(script)]
        done = subprocess.run([*command, str(source), str(target)], capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["failed"]
            return {"failed": lines[-1][:200]}
        found: dict[str, Any] = json.loads(target.read_text())
        return found


def summary(alarms: list[list[bool]], new: float) -> dict[str, Any]:
    """A null year's chance of any alarm; or power within the days given, and delay."""
    runs = len(alarms)
    if not new:
        looks = [a for run in alarms for a in run]
        any_ = share(sum(any(run) for run in alarms), runs)
        shares = {"any_false_alarm": any_, "false_share_of_looks": float(np.mean(looks))}
        return {"runs": runs, **shares}
    fair = [run[QUIET:] for run in alarms if not any(run[:QUIET])]
    delay = [run.index(True) + 1 if any(run) else np.inf for run in fair]
    found: dict[str, Any] = {"runs": runs, "false_before": runs - len(fair), "fair": len(fair)}
    if fair:
        found["power"] = float(np.mean(np.isfinite(delay)))
        for name, q in (("median", 0.5), ("90", 0.9)):
            value = float(np.quantile(delay, q, method="higher"))
            found[name] = value if np.isfinite(value) else None
    return found


def cell(found: dict[str, Any]) -> str:
    """One entry of the table."""
    if "any_false_alarm" in found:
        a = found["any_false_alarm"]
        return f"{a['share']:.0%} ({a['low']:.0%}–{a['high']:.0%})"
    if "power" in found:
        days = [f"> {CHANGED}" if found[k] is None else f"{found[k]:g}" for k in ("median", "90")]
        false = f"; {found['false_before']} false" if found["false_before"] else ""
        return f"{found['power']:.0%}, {days[0]} ({days[1]}){false}"
    return str(found.get("failed", "all alarmed before" if found else "–"))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each way."""
    changes = [f"{100 * s:g} % new: power, delay (90 %)" for s in SHARES[1:]]
    head = ["", "false alarm within a null year (95 %)", *changes]
    lines = [f"| {' | '.join(head)} |", "|-" * len(head) + "|"]
    for name, by in found.items():
        cells = [cell(by.get(f"{new:g}", {})) for new in SHARES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def save(name: str, new: float, value: dict[str, Any]) -> None:
    """Put one cell into the result file."""
    rows_ = read_json(RESULT)["rows"] if RESULT.exists() else {}
    rows_.setdefault(name, {})[f"{new:g}"] = value
    about = {
        "alpha": ALPHA,
        "data": f"seed encoder's features of emoji, {DIMENSIONS} components",
        "reference": REFERENCE,
        "batch": BATCH,
        "quiet_days": QUIET,
        "changed_days": CHANGED,
        "permutations": PERMUTATIONS,
    }
    write_json(RESULT, {"about": about, "rows": rows_})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--peers", type=Path, help="folder with the peers' environments")
    parser.add_argument("--only", nargs="*", default=["ours", *PEERS])
    given = parser.parse_args()
    for new in SHARES:
        if "ours" in given.only:
            for name, alarms in ours(new, given.runs).items():
                save(name, new, summary(alarms, new))
        for name in [n for n in PEERS if given.peers and n in given.only]:
            found = peer(name, given.peers, new, given.runs)
            value = found if "failed" in found else summary(found["alarms"], new) | found["about"]
            save(name, new, value)
        print(f"share {new:g} done", flush=True)
    print(table(read_json(RESULT)["rows"]))


if __name__ == "__main__":
    main()
