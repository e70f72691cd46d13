"""Harm and diagnosis on real embedded images: ``python -m benchmarks.harm [part ...]``.

Parts: ``estimators`` (error of the guesses without labels), ``request`` (a labelling request
beside uniform sampling), ``sequence`` (false claims and delay of the proof of harm) go into
results/harm.json; ``diagnosis`` (confusion table of planted causes) into results/diagnosis.json.
Thresholds of the diagnosis were set on seeds 0-2; the table is of other seeds.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ImageFilter

from ssl_core.artifacts import read_json, write_json
from ssl_core.harm import _accuracy, _request, _sequence, cbpe
from ssl_core.harm._common import Outputs, estimates
from ssl_core.harm._diagnosis import Side, diagnose
from ssl_core.harm._quality import table

from . import _planted
from ._common import RESULTS
from ._planted import Batch, Names, Picture, World

ESTIMATORS = ("atc", "doc", "cbpe", "average_confidence")
SEEDS = range(10, 15)  # of the diagnosis
REPETITIONS = 400
COUNTS = (50, 100, 200)
ALPHA, DROP = 0.05, 0.05

CORRUPTIONS: dict[str, Callable[[Picture], Picture]] = {
    "none": lambda p: p,
    **{f"blur {s}": lambda p, s=s: p.filter(ImageFilter.GaussianBlur(s)) for s in (1, 2, 3, 4)},
    **{f"light {f}": lambda p, f=f: p.point(lambda v: int(v * f)) for f in (0.7, 0.5, 0.3, 0.15)},
}


# ---- days --------------------------------------------------------------------------------------


def corrupted(w: World, how: str, seed: int, count: int = 400) -> Batch:
    """A day of the old vendors with one corruption, or all by the new vendor."""
    rng = np.random.default_rng([seed, 13])
    rows = rng.choice(w.known, min(count, len(w.known)), replace=False)
    if how == "new vendor":
        return _planted.batch(w.pool, rows, rng, new=True)
    pictures = [CORRUPTIONS[how](w.pool.make(int(i), rng)) for i in rows]
    return _planted.embed(pictures, w.pool.label[rows], w.pool.group[rows])


def outputs(w: World, b: Batch) -> Outputs:
    """What the head says of a batch, with outcomes."""
    named, sure = w.head.predict(b.features)
    return Outputs(sure.astype(np.float64), b.group, (named == b.label).astype(np.float64))


# ---- estimators --------------------------------------------------------------------------------


def estimator_errors(worlds: dict[str, list[World]]) -> dict[str, Any]:
    """Signed error per corruption, averaged over seeds, and mean absolute error over all."""
    found = {}
    for name, of in worlds.items():
        rows, errors = [], {e: [] for e in ESTIMATORS}
        for how in (*CORRUPTIONS, "new vendor"):
            cells, truths = {e: [] for e in ESTIMATORS}, []
            for seed, w in enumerate(of):
                now = outputs(w, corrupted(w, how, seed))
                truths.append(float(now.correct.mean()))
                guesses = estimates(outputs(w, w.reference), now, ESTIMATORS, seed, draws=0)
                for e in ESTIMATORS:
                    cells[e].append(guesses[e]["value"] - truths[-1])
            for e in ESTIMATORS:
                errors[e] += cells[e]
            rows.append(
                {
                    "day": how,
                    "accuracy": float(np.mean(truths)),
                    **{e: float(np.mean(cells[e])) for e in ESTIMATORS},
                }
            )
            print(name, rows[-1], flush=True)
        mae = {e: float(np.abs(errors[e]).mean()) for e in ESTIMATORS}
        worst = {e: float(max(errors[e], key=abs)) for e in ESTIMATORS}
        found[name] = {"rows": rows, "mean_absolute_error": mae, "worst": worst, "seeds": len(of)}
        print(name, "MAE", mae, "worst", worst, flush=True)
    return found


# ---- request -----------------------------------------------------------------------------------


def _one(right: Any, error: Any, count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    p = _request.plan(error, count, rng)
    sizes = dict(enumerate(np.bincount(p.stratum).tolist()))
    planned = _accuracy.stratified(right[p.chosen], p.stratum[p.chosen], sizes)
    drawn = right[rng.choice(len(right), count, replace=False)]
    return planned, _accuracy.stratified(drawn, np.zeros(count), {0.0: 1.0})


def request(worlds: dict[str, list[World]]) -> list[dict[str, Any]]:
    """RMSE to the day's accuracy, mean width of the interval and its coverage, both ways."""
    rows = []
    for name, of in worlds.items():
        for how in ("none", "blur 2", "new vendor"):
            w = of[0]
            now, known = outputs(w, corrupted(w, how, 99, 600)), outputs(w, w.reference)
            error = 1 - cbpe.calibrate(known.confidence, known.correct)(now.confidence)
            truth = float(now.correct.mean())
            for count in COUNTS:
                rng = np.random.default_rng([count, 5])
                pairs = [_one(now.correct, error, count, rng) for _ in range(REPETITIONS)]
                row: dict[str, Any] = {"set": name, "day": how, "images": len(error)}
                row |= {"accuracy": truth, "labels": count, "repetitions": REPETITIONS}
                for key, found in zip(
                    ("request", "uniform"), zip(*pairs, strict=True), strict=True
                ):
                    value = np.array([f.value for f in found])
                    low, high = (np.array([getattr(f, k) for f in found]) for k in ("low", "high"))
                    row[key] = {
                        "rmse": float(np.sqrt(((value - truth) ** 2).mean())),
                        "bias": float((value - truth).mean()),
                        "width": float((high - low).mean()),
                        "coverage": float(((low <= truth) & (truth <= high)).mean()),
                    }
                row["rmse_ratio"] = row["request"]["rmse"] / row["uniform"]["rmse"]
                row["width_ratio"] = row["request"]["width"] / row["uniform"]["width"]
                rows.append(row)
                print(row, flush=True)
    return rows


# ---- proof -------------------------------------------------------------------------------------


def _stream(accuracy: float, days: int, per_day: int, rng: np.random.Generator) -> list[Any]:
    return [(d + 1, (rng.random(per_day) >= accuracy).astype(float)) for d in range(days)]


def sequence(streams: int = 1000, n0: int = 400, days: int = 60, per_day: int = 10) -> Any:
    """False claims at exactly the allowed loss, and labels until proof, looking every day."""
    rows, reference = [], 0.85
    for drop, start in ((0.05, 0), (0.10, 0), (0.20, 0), (0.35, 0), (0.20, 30), (0.35, 30)):
        claims, delays = 0, []
        for i in range(streams if drop == DROP else streams // 5):
            rng = np.random.default_rng([i, 21])
            error = _sequence.allowed_error(rng.binomial(n0, reference), n0, ALPHA, DROP)
            stream = _stream(reference, start, per_day, rng)
            stream += [(d + start, x) for d, x in _stream(reference - drop, days, per_day, rng)]
            numbers = np.array([float(d) for d, _ in stream])
            logs = np.stack([_sequence.wealth(x, error) for _, x in stream])
            looks = range(start + 1, len(stream) + 1)
            values = ((k, _sequence.combine(numbers[:k], logs[:k], 0).e_value) for k in looks)
            hit = next((k for k, e in values if e >= 2 / ALPHA), 0)
            claims += hit > 0
            delays += [(hit - start) * per_day] * (hit > 0)
        row = {"drop": drop, "from_day": start, "days": days, "labels_per_day": per_day}
        row |= {"streams": streams if drop == DROP else streams // 5, "claims": claims}
        row["median_labels"] = float(np.median(delays)) if delays else None
        rows.append(row)
        print(row, flush=True)
    return {"reference": reference, "reference_n": n0, "alpha": ALPHA, "rows": rows}


# ---- diagnosis ---------------------------------------------------------------------------------


def side(w: World, b: Batch, camera: Names | None = None, known: bool = False) -> Side:
    """A batch as the diagnosis sees it; labels only of the reference."""
    named, sure = w.head.predict(b.features)
    place = {} if camera is None else {"camera": camera}
    return Side(
        b.features,
        named,
        sure.astype(np.float64),
        table(b.pixels),
        place,
        b.label if known else None,
    )


def diagnosis() -> dict[str, Any]:
    """Planted cause -> what was said, over sets and seeds."""
    said: dict[str, dict[str, Counter[str]]] = {}
    for name in _planted.SETS:
        said[name] = {case: Counter() for case in _planted.CASES}
        for seed in SEEDS:
            w = _planted.world(name, seed)
            reference = side(w, w.reference, known=True)
            for case in _planted.CASES:
                batch, camera = _planted.day(w, case, seed)
                cause, _, found = diagnose(reference, side(w, batch, camera))
                said[name][case][cause] += 1
                scores = {h.cause: round(h.score, 2) for h in found}
                print(name, seed, case, "->", cause, scores, flush=True)
    right = wrong = unknown = 0
    for cases in said.values():
        for case, counts in cases.items():
            right += counts[_planted.LABELS[case]]
            unknown += counts["unknown"]
            wrong += counts.total() - counts[_planted.LABELS[case]] - counts["unknown"]
    plain = {n: {c: dict(k) for c, k in cases.items()} for n, cases in said.items()}
    about = {"seeds": list(SEEDS), "expected": _planted.LABELS, "images": 200, "reference": 400}
    return {"said": plain, "right": right, "unknown": unknown, "wrong": wrong, **about}


def main() -> None:
    """Run the named parts, or all; parts that are not run keep their last result."""
    parts = sys.argv[1:] or ["estimators", "request", "sequence", "diagnosis"]
    file = RESULTS / "harm.json"
    found = read_json(file) if file.exists() else {}
    worlds = {}
    if {"estimators", "request"} & set(parts):
        worlds = {n: [_planted.world(n, s) for s in range(3)] for n in _planted.SETS}
    if "estimators" in parts:
        found["estimators"] = estimator_errors(worlds)
    if "request" in parts:
        found["request"] = request(worlds)
    if "sequence" in parts:
        found["sequence"] = sequence()
    write_json(file, found)
    if "diagnosis" in parts:
        result = diagnosis()
        write_json(RESULTS / "diagnosis.json", result)
        print({k: result[k] for k in ("right", "unknown", "wrong")})


if __name__ == "__main__":
    main()
