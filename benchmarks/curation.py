"""Curation of 10 k, 100 k and 1 M synthetic embeddings: seconds and peak memory of each step.

``python -m benchmarks.curation [--sizes 10000 100000 1000000] [--steps near ...]``. Each case is
a process of its own with one thread, and growth is that of its CPU time: other work on the machine
does not count. What caches and neighbours on the machine do to CPU time still does, so each case
runs ``--repeats`` times, round after round, and the least time stands. Embeddings are
64-dimensional, around 2,000 concepts of Zipf's shares; one in twenty images copies another (cosine
about 0.98, some bits of its pHash), and one in fifty of these pHash by chance. ``all`` is the
stage's own loop over all steps, with splits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import RESULTS, machine
from ssl_core import plugins
from ssl_core.artifacts import write_json
from ssl_core.config import Config
from ssl_core.curation import _pixels, _vectors
from ssl_core.stages import curate

SIZES = (10_000, 100_000, 1_000_000)
STEPS = ("exact", "near", "leak", "semantic", "hierarchical")
CASES = ("near", "semantic", "hierarchical", "all")
DIMENSIONS, CONCEPTS, COPIES = 64, 2000, 0.05
MAKING: list[float] = []  # seconds that ``noise`` took: they are the benchmark's own
LIMIT = 11.0  # times the seconds for ten times the images


class Watch:
    """A reporter that notes the CPU time between steps."""

    def __init__(self) -> None:
        self.last, self.seconds = time.process_time(), dict[str, float]()

    def log(self, text: str, **facts: Any) -> None:
        """After each step."""
        now = time.process_time() - sum(MAKING)
        self.seconds[text.partition(":")[0]], self.last = round(now - self.last, 2), now


def embeddings(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), pHash bits (N,), the concept of each and the original of each copy."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CONCEPTS, DIMENSIONS)).astype(np.float32)
    share = 1 / np.arange(1, CONCEPTS + 1)
    concept = rng.choice(CONCEPTS, count, p=share / share.sum())
    features = centres[concept]
    features += 0.6 * rng.normal(size=features.shape).astype(np.float32)
    bits = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = rng.choice(count, round(COPIES * count), replace=False)
    original = np.arange(count)
    own = np.setdiff1d(np.arange(count), copies)
    original[copies] = rng.choice(own, len(copies))
    features[copies] = features[original[copies]]
    features[copies] += 0.2 * rng.normal(size=(len(copies), DIMENSIONS)).astype(np.float32)
    flips = rng.integers(0, 64, (2, len(copies))).astype(np.uint64)
    bits[copies] = bits[original[copies]] ^ (np.uint64(1) << flips[0]) ^ (np.uint64(1) << flips[1])
    concept[copies] = concept[original[copies]]
    return features, bits, concept, original


def frame_of(bits: np.ndarray) -> pd.DataFrame:
    """The curated frame before any step."""
    shas = [f"{i:064x}" for i in range(len(bits))]
    return pd.DataFrame(
        {
            "path": shas,
            "sha256": shas,
            "group": shas,
            "source": "made",
            "phash": [f"{b:016x}" for b in bits.tolist()],
            "width": 64,
            "height": 64,
            "label": pd.Series(pd.NA, range(len(bits)), dtype="str"),
            "dup_group": np.int64(-1),
            "dup_of": pd.Series(pd.NA, range(len(bits)), dtype="str"),
            "cluster": np.int64(-1),
            "split": "train",
            "keep": True,
            "reason": "",
            "detail": "",
        }
    )


def noise(rows: np.ndarray) -> np.ndarray:
    """Pictures that never agree: doubtful pairs cost their comparison, but no reading."""
    start, rng = time.process_time(), np.random.default_rng(len(rows))
    made = rng.integers(0, 256, (len(rows), 3, _pixels.SIDE, _pixels.SIDE), dtype=np.uint8)
    MAKING.append(time.process_time() - start)
    return made


def case(name: str, count: int) -> dict[str, Any]:
    """Run one case in this process."""
    import faiss

    features, bits, concept, original = embeddings(count)
    frame = frame_of(bits)
    cfg = Config.model_validate({"curate": {"steps": STEPS, "keep": 0.5}})
    # What has to be loaded is loaded before the clock runs.
    warm = np.random.default_rng(0).normal(size=(64, DIMENSIONS)).astype(np.float32)
    _vectors.assign(warm, _vectors.kmeans(warm, 4, 0))
    _pixels.agreement(noise(np.arange(2)), noise(np.arange(2)))
    MAKING.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu, watch = time.perf_counter(), time.process_time(), Watch()
    if name == "all":
        out = curate.curate(frame, features, cfg, watch, noise)  # type: ignore[arg-type]
    else:
        if name != "near":
            frame["split"] = np.where(np.arange(count) % 4 == 0, "test", "train")
        step = plugins.load("curation", name)
        see = {"look": noise} if getattr(step, "NEEDS_PIXELS", False) else {}
        out = step.apply(frame, features, cfg.curate, 0, **see)
    found = {
        "case": name,
        "images": count,
        "seconds": time.perf_counter() - start - sum(MAKING),
        "cpu_seconds": time.process_time() - cpu - sum(MAKING),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before / 1024,
        "data_mib": features.nbytes / 2**20,
        "threads": faiss.omp_get_max_threads(),
        "kept": int(out["keep"].sum()),
    }
    found |= {"steps": watch.seconds} if watch.seconds else {}
    return found | quality(name, out, concept, original)


def quality(
    name: str, out: pd.DataFrame, concept: np.ndarray, original: np.ndarray
) -> dict[str, float]:
    """What the step was for: copies found, or how even concepts have become (of log K, 1: even)."""
    if name == "near":
        copies = np.flatnonzero(original != np.arange(len(original)))
        group = out["dup_group"].to_numpy()
        right = (group[copies] >= 0) & (group[copies] == group[original[copies]])
        lost = ~out["keep"].to_numpy()
        family = pd.Series(original)[lost].isin(original[copies])
        return {"recall": float(right.mean()), "precision": float(family.mean())}
    if name != "hierarchical":
        return {}
    pool = (out["split"] == "train").to_numpy()

    def evenness(rows: np.ndarray) -> float:
        share = np.bincount(concept[rows], minlength=CONCEPTS) / rows.sum()
        share = share[share > 0]
        return float(-(share * np.log(share)).sum() / np.log(CONCEPTS))

    kept = out["keep"].to_numpy()
    return {"evenness_before": evenness(pool), "evenness_after": evenness(pool & kept)}


def child(name: str, count: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.curation", "--case", name, "--sizes", str(count)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def least(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The quickest of equal runs, with the CPU seconds of all."""
    best = min(runs, key=lambda r: float(r["cpu_seconds"]))
    return best | {"runs": sorted(round(r["cpu_seconds"], 2) for r in runs)}


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times the seconds for ten times the images: per step of size, and over the whole range."""
    found = []
    for name in dict.fromkeys(r["case"] for r in rows):
        mine = sorted((r for r in rows if r["case"] == name), key=lambda r: r["images"])
        spans = list(itertools.pairwise(mine))
        for small, large in spans + ([(mine[0], mine[-1])] if len(mine) > 2 else []):
            tens = np.log10(large["images"] / small["images"])
            ratios = {
                kind: float((large[kind] / small[kind]) ** (1 / tens))
                for kind in ("seconds", "cpu_seconds")
            }
            found.append({"case": name, "from": small["images"], "to": large["images"]} | ratios)
    return found


def markdown(rows: list[dict[str, Any]], grown: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = ["| step | images | seconds | CPU s | peak MiB | of it embeddings |", "|-" * 6 + "|"]
    lines += [
        f"| {r['case']} | {r['images']:,} | {r['seconds']:.1f} | {r['cpu_seconds']:.1f} "
        f"| {r['peak_mib']:.0f} | {r['data_mib']:.0f} |"
        for r in rows
    ]
    lines += ["", "| step | from | to | seconds × | CPU × |", "|-" * 5 + "|"]
    lines += [
        f"| {g['case']} | {g['from']:,} | {g['to']:,} | {g['seconds']:.1f} "
        f"| {g['cpu_seconds']:.1f} |"
        for g in grown
    ]
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory over images, both logarithmic; the dashed line is the limit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for name in dict.fromkeys(r["case"] for r in rows):
        mine = [r for r in rows if r["case"] == name]
        for axis, key in zip(axes, ("cpu_seconds", "peak_mib"), strict=True):
            axis.plot([r["images"] for r in mine], [r[key] for r in mine], "o-", label=name)
    sizes = sorted({r["images"] for r in rows})
    base = next(r["cpu_seconds"] for r in rows if r["case"] == "all" and r["images"] == sizes[0])
    line = [base * LIMIT ** np.log10(n / sizes[0]) for n in sizes]
    axes[0].plot(sizes, line, "k--", linewidth=0.8, label=f"×{LIMIT:.0f} per ×10")
    for axis, text in zip(axes, ("CPU seconds", "peak MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="images", ylabel=text)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--steps", nargs="+", default=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", help="run this one here and print JSON")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(case(args.case, args.sizes[0])))
        return
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _, count, name in itertools.product(range(args.repeats), args.sizes, args.steps):
        runs.setdefault((name, count), []).append(child(name, count))
        print(runs[name, count][-1], flush=True)
    rows = [least(found) for found in runs.values()]
    rows.sort(key=lambda row: args.steps.index(row["case"]))
    grown = growth(rows)
    print(markdown(rows, grown))
    if tuple(args.steps) == CASES and tuple(args.sizes) == SIZES:
        about = {"dimensions": DIMENSIONS, "concepts": CONCEPTS, "copies": COPIES}
        about |= {"load": os.getloadavg()[0], "steps": STEPS, "repeats": args.repeats}
        found = {"name": "curation", "machine": machine(), "about": about}
        write_json(RESULTS / "curation.json", found | {"rows": rows, "growth": grown})
        picture(rows, RESULTS / "curation.png")


if __name__ == "__main__":
    main()
