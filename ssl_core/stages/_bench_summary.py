"""What the rows of the comparison of methods say together."""

from __future__ import annotations

from typing import Any

import numpy as np

MEASURES = ("knn", "linear", "fine_tune")
Row = dict[str, Any]


def summary(rows: list[Row]) -> list[Row]:
    """Per set and name: mean and 95 % interval over seeds, and the margin over random init.

    Margins are paired: a seed's random init is what its training started from. ``failed`` counts
    seeds whose training was stopped; they have no measures.
    """
    keys = dict.fromkeys((r["set"], r["name"]) for r in rows)
    return [_line(rows, set_, name) for set_, name in keys]


def _line(rows: list[Row], set_: str, name: str) -> Row:
    mine = [r for r in rows if (r["set"], r["name"]) == (set_, name)]
    good = [r for r in mine if "failed" not in r]
    base = {r["seed"]: r for r in rows if (r["set"], r["name"]) == (set_, "random")}
    line: Row = {"set": set_, "name": name, "seeds": len(good), "failed": len(mine) - len(good)}
    for key in ("steps", "seconds"):
        if good and key in good[0]:
            line[key] = float(np.mean([r[key] for r in good]))
    for measure in MEASURES:
        values = [r[measure] for r in good if measure in r]
        if values:
            pairs = [(r[measure], base[r["seed"]][measure]) for r in good if r["seed"] in base]
            line[measure] = _cell(values, [a - b for a, b in pairs])
    return line


def _cell(values: list[float], margins: list[float]) -> Row:
    return {
        "mean": float(np.mean(values)),
        "half": half_width(values),
        "margin": float(np.mean(margins)) if margins else None,
        "margin_half": half_width(margins),
    }


def half_width(values: list[float]) -> float | None:
    """Of Student's 95 % interval of the mean; None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
