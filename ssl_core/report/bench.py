"""The comparison of methods as a table and a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from . import _tables
from ._figures import _figure
from ._theme import ACCENT, MUTED, SOFT, WARM, styled

NAMES = {"knn": "kNN", "linear": "linear probe", "fine_tune": "fine-tuned"}
BASELINES = {"random": "random init", "pixels": "raw pixels", "supervised": "supervised"}
Row = Mapping[str, Any]


def _name(row: Row) -> str:
    return BASELINES.get(str(row["name"]), str(row["name"]))


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    half = "" if value["half"] is None else f" ± {100 * value['half']:.1f}"
    return f"{100 * value['mean']:.1f}{half}"


def _margin(value: Mapping[str, Any] | None) -> str:
    if value is None or value["margin"] is None:
        return ""
    half = "" if value["margin_half"] is None else f" ± {100 * value['margin_half']:.1f}"
    return f"{100 * value['margin']:+.1f}{half}"


def _ranked(table: Sequence[Row], set_: str) -> list[Row]:
    """Rows of one set, the worst linear probe first; before them what has none."""
    mine = [r for r in table if r["set"] == set_]
    return sorted(mine, key=lambda r: r["linear"]["mean"] if "linear" in r else -1.0)


def markdown(table: Sequence[Row]) -> str:
    """One table per set: accuracy in percent, mean and 95 % interval over seeds.

    "stopped" counts seeds whose training the guard ended; they take no part in the means.
    """
    lines, shown = [], [m for m in NAMES if any(m in r for r in table)]
    heads = ["method", "steps", *(f"{NAMES[m]} %" for m in shown)]
    heads += [f"{NAMES[m]} over random init" for m in shown]
    for set_ in dict.fromkeys(r["set"] for r in table):
        rows = []
        for r in reversed(_ranked(table, set_)):
            stopped = f" ({r['failed']} stopped)" if r["failed"] else ""
            cells = [_name(r) + stopped, f"{r['steps']:.0f}" if "steps" in r else ""]
            cells += [_cell(r.get(m)) for m in shown]
            cells += [_margin(r.get(m)) if r["name"] != "random" else "" for m in shown]
            rows.append(cells)
        lines += [f"### {set_}", "", *_tables.markdown(heads, rows), ""]
    return "\n".join(lines)


def picture(table: Sequence[Row]) -> bytes:
    """PNG: a dot and an interval per method, measure (columns) and set (rows)."""
    sets = list(dict.fromkeys(r["set"] for r in table))
    measures = [m for m in NAMES if any(m in r for r in table)]
    most = max(sum(r["set"] == s for r in table) for s in sets)
    with styled():
        figure, axes = _figure(
            3.6 * len(measures) + 1, 0.24 * most * len(sets) + 1, len(sets), len(measures)
        )
        for i, set_ in enumerate(sets):
            rows = [r for r in _ranked(table, set_) if "linear" in r]
            for axis, measure in zip(axes[i], measures, strict=True):
                _dots(axis, rows, measure)
                axis.set_title(f"{set_}: {NAMES[measure]} %")
            for axis in axes[i][1:]:
                axis.set_yticklabels([])
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white")
    return out.getvalue()


def _dots(axis: Any, rows: Sequence[Row], measure: str) -> None:
    for y, r in enumerate(rows):
        if measure not in r:
            continue
        value, half = 100 * r[measure]["mean"], 100 * (r[measure]["half"] or 0)
        colour = WARM if r["name"] in BASELINES else ACCENT
        axis.plot([value - half, value + half], [y, y], color=colour, linewidth=1.2)
        axis.plot([value], [y], "o", color=colour, markersize=4)
        if r["name"] == "random":
            axis.axvline(value, color=MUTED, linewidth=0.8)
    axis.set_yticks(range(len(rows)), [_name(r) for r in rows])
    axis.tick_params(axis="y", labelcolor=SOFT, labelsize=8)
