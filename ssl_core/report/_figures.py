"""Matplotlib figures. Each function takes plain values and returns a Figure; none touches pyplot,
so that they may run in any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..types import Array
from ._theme import ACCENT, BAD, GOOD, GRID, HUES, INK, MUTED, SOFT, WARM, short, styled

VERDICTS = {"ok": GOOD, "drift": WARM, "harm": BAD}
TITLES = {"lr": "learning rate", "grad_norm": "gradient norm"}
TOP = 10  # classes that get a colour of their own
Figure = Any
Matrix = NDArray[np.float64]
Names = NDArray[np.str_]


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **kw: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **kw)


def smooth(values: Matrix, span: int) -> Matrix:
    """Running mean (N,) over at most ``span`` values, centred; edges use what there is."""
    if span < 2 or len(values) < 3:
        return values
    window = np.ones(span)
    total = np.convolve(values, window, "same")
    result: Matrix = total / np.convolve(np.ones(len(values)), window, "same")
    return result


def curves(log: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, learning rate and the method's own numbers against the step."""
    frame = pd.DataFrame(list(log))
    first = [k for k in ("loss", "lr", "grad_norm") if k in frame]
    names = first + [k for k in frame.columns if k not in (*first, "step", "samples")]
    names = [k for k in names if frame[k].notna().any()][:6]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with styled():
        figure, axes = _figure(9.6, 2.6 * rows, rows, columns)
        figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
        for axis, name in zip(axes.flat, names, strict=False):
            values = frame[name].to_numpy(float)
            if name != "lr":
                axis.plot(frame["step"], values, color=MUTED, linewidth=0.8, alpha=0.7)
            calm = values if name == "lr" else smooth(values, max(1, len(values) // 25))
            axis.plot(frame["step"], calm, color=ACCENT)
            axis.set_title(short(TITLES.get(name, name.replace("_", " "))))
            axis.margins(x=0.01)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("step")
    return figure


def tail(before: Mapping[str, int], after: Mapping[str, int] | None = None) -> Figure:
    """Images per class, largest first; ``after`` curation in front of ``before``."""
    names = sorted(before, key=lambda k: (-before[k], k))
    x = np.arange(len(names))
    with styled():
        figure, [[axis]] = _figure(9.6, 3.0 if len(names) > 30 else 3.4)
        axis.bar(x, [before[n] for n in names], width=0.86, color=MUTED, label="found")
        if after is not None:
            kept = [after.get(n, 0) for n in names]
            axis.bar(x, kept, width=0.86, color=ACCENT, label="kept")
            axis.legend(loc="upper right")
        axis.set_ylabel("images")
        axis.grid(axis="x", visible=False)
        axis.margins(x=0.01)
        if len(names) > 40:
            axis.set_xticks([])
            axis.set_xlabel(f"{len(names)} classes, most frequent first")
        else:
            axis.set_xticks(x, [short(n, 20) for n in names], rotation=50, ha="right")
    return figure


def clusters(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Sizes of the clusters, largest first, before and after balancing."""
    keys = sorted(before, key=lambda k: -before[k])
    x = np.arange(len(keys))
    with styled():
        figure, [[axis]] = _figure(9.6, 2.6)
        axis.bar(x, [before[k] for k in keys], width=0.86, color=MUTED, label="before balancing")
        kept = [after.get(k, 0) for k in keys]
        axis.bar(x, kept, width=0.86, color=ACCENT, label="after")
        axis.set_ylabel("images")
        axis.set_xlabel(f"{len(keys)} clusters of the seed embedding, largest first")
        axis.set_xticks([])
        axis.grid(axis="x", visible=False)
        axis.margins(x=0.01)
        axis.legend(loc="upper right")
    return figure


def _coloured(axis: Any, points: Array, names: Names, title: str) -> None:
    """Scatter with the most frequent names coloured and the rest grey."""
    values, counts = np.unique(names.astype(str), return_counts=True)
    ranked = [str(values[i]) for i in np.argsort(-counts, kind="stable")]
    chosen = ranked if len(ranked) <= len(HUES) else ranked[:TOP]
    other = ~np.isin(names.astype(str), chosen)
    if other.any():
        label = f"{len(ranked) - len(chosen)} more"
        axis.scatter(*points[other].T, s=9, color=MUTED, alpha=0.45, linewidths=0, label=label)
    for hue, name in zip(HUES, chosen, strict=False):
        mine = names.astype(str) == name
        axis.scatter(*points[mine].T, s=12, color=hue, alpha=0.85, linewidths=0, label=short(name))
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=3,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=0.9,
        markerscale=1.6,
    )


def project(features: Array, seed: int = 0) -> tuple[Array, str]:
    """(N, D) -> (N, 2) by t-SNE (van der Maaten & Hinton 2008), or PCA for under 50 points."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n, d = features.shape
    flat = PCA(min(50, n, d), random_state=seed).fit_transform(features)
    if n < 50 or d < 3:
        return np.pad(flat[:, :2], ((0, 0), (0, max(0, 2 - flat.shape[1])))), "PCA"
    points = TSNE(init="pca", perplexity=min(30.0, n / 5), random_state=seed).fit_transform(flat)
    return points, "t-SNE"


def embedding_map(features: Array, labels: Names, sources: Names, seed: int = 0) -> Figure:
    """Two maps of features (N, D): coloured by class and by source."""
    points, kind = project(features, seed)
    with styled():
        figure, [axes] = _figure(9.6, 5.4, 1, 2)
        _coloured(axes[0], points, labels, "by class")
        _coloured(axes[1], points, sources, "by source")
        axes[1].annotate(
            f"{kind}, {len(points)} images",
            (1, 1),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            color=SOFT,
            fontsize=8.5,
        )
    return figure


def intervals(rows: pd.DataFrame, title: str = "") -> Figure:
    """Dots with intervals, one line per slice and encoder; the first encoder stands out.

    Args:
        rows: columns slice, encoder, value, low, high (NaN: no interval); values are shares.
    """
    slices = list(dict.fromkeys(rows["slice"]))
    encoders = list(dict.fromkeys(rows["encoder"]))
    hues = [ACCENT, *HUES[1:]]
    with styled():
        figure, [[axis]] = _figure(9.6, 0.9 + 0.17 * len(slices) * (len(encoders) + 1))
        for i, encoder in enumerate(encoders):
            mine = rows[rows["encoder"] == encoder].drop_duplicates("slice").set_index("slice")
            part = mine.reindex(slices)
            y = np.arange(len(slices)) + (i - (len(encoders) - 1) / 2) / (len(encoders) + 1)
            colour = hues[i % len(hues)]
            axis.hlines(y, part["low"], part["high"], color=colour, linewidth=2.2, alpha=0.45)
            axis.scatter(
                part["value"],
                y,
                s=46 if i == 0 else 22,
                color=colour,
                zorder=3,
                label=short(encoder),
            )
        axis.set_yticks(np.arange(len(slices)), [short(s) for s in slices])
        for edge in np.arange(len(slices) - 1) + 0.5:
            axis.axhline(edge, color=GRID, linewidth=0.7)
        axis.set_ylim(len(slices) - 0.45, -0.55)
        axis.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.set_title(title)
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(encoders),
            fontsize=8.5,
            handletextpad=0.1,
        )
    return figure


def timeline(history: pd.DataFrame, events: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Drift evidence and accuracy by day.

    Args:
        history: rows of ``stages.monitor.history``.
        events: {"date": "YYYY-MM-DD", "text": str}, drawn as marked lines.
    """
    days = pd.to_datetime(history["date"])
    detectors = [c for c in history.columns if c.startswith("p_")]
    with styled():
        figure, axes = _figure(9.6, 5.2, 2, 1, sharex=True)
        _evidence(axes[0][0], days, history, detectors)
        _accuracy(axes[1][0], days, history)
        for event in events:
            when = pd.Timestamp(event["date"])
            for row in axes:
                row[0].axvline(when, color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.6)
            axes[0][0].annotate(
                short(event["text"], 30),
                (when, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -2),
                textcoords="offset points",
                va="top",
                fontsize=8.5,
                color=INK,
            )
        _date_axis(axes[1][0], days)
    return figure


def _date_axis(axis: Any, days: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=10)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    pad = pd.Timedelta(days=1)
    axis.set_xlim(days.min() - pad, days.max() + pad)


def _evidence(axis: Any, days: Any, history: pd.DataFrame, detectors: list[str]) -> None:
    for hue, name in zip(HUES, detectors, strict=False):
        strength = -np.log10(history[name].to_numpy(float))
        axis.plot(
            days,
            strength,
            color=hue,
            linewidth=1.4,
            marker="o",
            markersize=3.5,
            label=name.removeprefix("p_").replace("_", " "),
        )
    if history["evidence"].notna().any():
        # Evidence over what raises the alarm, as a logarithm that is moved to end at the line.
        needed = history["evidence_needed"].to_numpy(float)
        value = np.log10(np.maximum(history["evidence"].to_numpy(float) / needed, 1e-4)) + 4
        axis.plot(days, value, color=INK, linewidth=1.8, label="all days together")
        axis.axhline(4, color=BAD, linewidth=1, linestyle="--", label="alarm")
    axis.set_title("Evidence of change")
    axis.set_ylabel("−log₁₀ p of a day")
    axis.set_ylim(bottom=0)
    if detectors:
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8.5)


def _accuracy(axis: Any, days: Any, history: pd.DataFrame) -> None:
    value = history["accuracy"].to_numpy(float)
    axis.plot(
        days,
        history["reference"].to_numpy(float),
        color=SOFT,
        linewidth=1,
        linestyle="--",
        label="reference",
    )
    axis.fill_between(
        days,
        history["low"].to_numpy(float),
        history["high"].to_numpy(float),
        color=ACCENT,
        alpha=0.15,
        linewidth=0,
    )
    axis.plot(days, value, color=ACCENT, linewidth=1.4, alpha=0.7)
    for verdict, colour in VERDICTS.items():
        mine = (history["verdict"] == verdict).to_numpy()
        if mine.any():
            axis.scatter(days[mine], value[mine], color=colour, s=26, zorder=3, label=verdict)
    axis.set_title("Accuracy where labels came  (95% interval)")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8.5)
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    if not np.isfinite(value).any():
        axis.set_ylim(0, 1)
        axis.text(0.5, 0.5, "no labels yet", transform=axis.transAxes, ha="center", color=SOFT)
    axis.grid(axis="x", color=GRID)
