"""Pictures of studies: a line or a bar per arm with its interval over seeds, a row per set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..report._figures import _figure
from ..report._theme import HUES, MUTED, png, short, styled
from ..stages._bench_summary import half_width


def _stats(values: pd.Series) -> tuple[float, float]:
    found = values.dropna().tolist()
    return float(np.mean(found)) if found else float("nan"), half_width(found) or 0.0


def _grid(rows: pd.DataFrame, panels: Mapping[str, str]) -> Any:
    sets = list(dict.fromkeys(rows["set"]))
    figure, axes = _figure(3.1 * len(panels) + 0.6, 2.5 * len(sets) + 0.5, len(sets), len(panels))
    return figure, axes, sets


def lines(
    rows: pd.DataFrame, x: str, panels: Mapping[str, str], arm: str, log: bool = False
) -> bytes:
    """PNG: a panel per measure and set, ``x`` across, a line per value of column ``arm``."""
    with styled():
        figure, axes, sets = _grid(rows, panels)
        arms = list(dict.fromkeys(rows[arm]))
        for line, set_ in zip(axes, sets, strict=True):
            mine = rows[rows["set"] == set_]
            for axis, (measure, title) in zip(line, panels.items(), strict=True):
                for hue, name in zip(HUES, arms, strict=False):
                    _line(axis, mine[mine[arm] == name], x, measure, hue, str(name))
                axis.set_title(short(title, 34))
                axis.set_xlabel(f"{set_}: {x}" if measure == next(iter(panels)) else x)
                if log:
                    axis.set_xscale("log")
                    ticks = sorted(mine[x].unique())
                    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
                    axis.minorticks_off()
            line[0].legend(title=arm, fontsize=7.5, title_fontsize=8)
        return png(figure)


def _line(axis: Any, rows: pd.DataFrame, x: str, measure: str, hue: str, name: str) -> None:
    if measure not in rows or rows[measure].isna().all():
        return
    found = {at: _stats(part[measure]) for at, part in rows.groupby(x)}
    at = np.array(list(found), float)
    mean, half = np.array(list(found.values())).T
    axis.plot(at, mean, color=hue, marker="o", markersize=3, linewidth=1.3, label=name)
    axis.fill_between(at, mean - half, mean + half, color=hue, alpha=0.12, linewidth=0)


def bars(rows: pd.DataFrame, arm: str, panels: Mapping[str, str]) -> bytes:
    """PNG: a panel per measure and set, a dot with its interval per value of column ``arm``."""
    with styled():
        figure, axes, sets = _grid(rows, panels)
        for line, set_ in zip(axes, sets, strict=True):
            mine = rows[rows["set"] == set_]
            arms = list(dict.fromkeys(mine[arm]))
            for axis, (measure, title) in zip(line, panels.items(), strict=True):
                for y, name in enumerate(arms):
                    if measure not in mine:
                        continue
                    part = mine[mine[arm] == name][measure]
                    mean, half = _stats(part)
                    hue = HUES[y % len(HUES)]
                    axis.plot(part, np.full(len(part), y), ".", color=MUTED, markersize=3)
                    axis.plot([mean - half, mean + half], [y, y], color=hue, linewidth=1.4)
                    axis.plot([mean], [y], "o", color=hue, markersize=4.5)
                axis.set_yticks(range(len(arms)), [short(a) for a in arms])
                axis.invert_yaxis()
                axis.set_title(short(f"{set_}: {title}", 36))
            for axis in line[1:]:
                axis.set_yticklabels([])
        return png(figure)
