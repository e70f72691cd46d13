"""The simulated year as two tables and a picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from . import _tables
from ._figures import _figure
from ._theme import ACCENT, GOOD, HUES, MUTED, SOFT, WARM, styled

COLOURS = {"never": MUTED, "ours": ACCENT, "periodic": WARM, "threshold": HUES[3], "always": GOOD}
TITLE = 60  # characters in a line of a panel's title
Row = Mapping[str, Any]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _weeks(value: int | None) -> str:
    return "" if value is None else str(value)


def markdown(table: Sequence[Row], totals: Sequence[Row], about: Mapping[str, Any]) -> str:
    """All scenarios together, then each by itself."""
    heads = ["policy", "recovered", "cost of periodic", "CPU s training, repair", "CPU s watching"]
    heads += ["labels used", "false alarms", "changes found", "promotions", "harmful", "rollbacks"]
    rows = [
        [
            t["policy"],
            _share(t["recovered"]),
            _share(t["cost"]),
            f"{t['seconds']:.0f}",
            f"{t['watching']:.0f}",
            str(t["labels"]),
            str(t["false_alarms"]),
            "{} of {}".format(*t["found"]) if t["found"][0] else "",
            str(t["promotions"]),
            str(t["harmful"]),
            str(t["rollbacks"]),
        ]
        for t in totals
    ]
    lines = [*_tables.markdown(heads, rows), "", *_each(table, about)]
    return "\n".join(lines)


def _each(table: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    heads = ["scenario", "policy", "lost accuracy-weeks", "recovered", "false alarms"]
    heads += ["alarm after (weeks)", "mended after (weeks)", "CPU s", "labels used"]
    heads += ["promotions", "harmful"]
    rows = []
    for name in about:
        for r in (r for r in table if r["scenario"] == name):
            cells = [name, r["policy"], f"{r['lost']:.2f}", _share(r["recovered"])]
            cells += [str(r["false_alarms"]), _weeks(r["delay"]), _weeks(r["mended_after"])]
            cells += [f"{r['seconds']:.1f}", str(r["labels"])]
            rows.append([*cells, str(r["promotions"]), str(r["harmful"])])
    texts = [
        f"- `{s.name}`: {s.text}" + (f", week {s.onset}" if s.onset else "") for s in about.values()
    ]
    return [*texts, "", *_tables.markdown(heads, rows), ""]


def picture(cases: Sequence[Row], about: Mapping[str, Any]) -> bytes:
    """PNG: true accuracy by week of each policy, a panel per scenario; triangles are promotions."""
    names = [n for n in about if any(c["scenario"] == n for c in cases)]
    columns = min(2, len(names))
    height = -(-len(names) // columns)
    with styled():
        figure, axes = _figure(4.6 * columns, 2.0 * height + 0.5, height, columns, sharey=True)
        for axis, name in zip(axes.flat, names, strict=False):
            for case in (c for c in cases if c["scenario"] == name):
                _line(axis, case)
            if about[name].onset:
                axis.axvline(about[name].onset, color=SOFT, linewidth=0.8, linestyle=":")
            title = f"{name}: {about[name].text}"
            axis.set_title(textwrap.fill(title, TITLE), fontsize=9)
        for axis in list(axes.flat)[len(names) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("week")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white")
    return out.getvalue()


def _line(axis: Any, case: Row) -> None:
    colour = COLOURS.get(str(case["policy"]), SOFT)
    x = [w["week"] for w in case["weeks"]]
    y = [100 * w["accuracy"] for w in case["weeks"]]
    wide = 1.8 if case["policy"] == "ours" else 1.0
    axis.plot(x, y, color=colour, linewidth=wide, label=case["policy"])
    if case["policy"] == "ours":
        moves = [m["week"] for m in case["moves"]]
        axis.plot(moves, [y[m - 1] for m in moves], "^", color=colour, markersize=6)
    axis.set_ylim(0, 100)
