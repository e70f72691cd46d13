"""The page's one drawing of its own: images flow from left to right, and what is turned away
leaves the stream downwards. Widths are proportional to counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT, TOP = 1000.0, 250.0, 34.0
STREAM = 120.0  # height of the whole stream at its source
DELTA = (
    '<defs><linearGradient id="delta"><stop stop-color="var(--water)"/>'
    '<stop offset="1" stop-color="var(--foam)"/></linearGradient></defs>'
)
LEAST = 2.5  # a trickle still has to be seen


@dataclass(frozen=True)
class Reach:
    """A stretch of the stream: its name, and what leaves at its end (reason, count)."""

    name: str
    count: int
    losses: tuple[tuple[str, int], ...] = ()


def _band(x0: float, x1: float, top0: float, top1: float, low0: float, low1: float) -> str:
    """Closed path between two smooth banks."""
    mid = (x0 + x1) / 2
    return (
        f"M{x0:.1f},{top0:.1f} C{mid:.1f},{top0:.1f} {mid:.1f},{top1:.1f} {x1:.1f},{top1:.1f} "
        f"L{x1:.1f},{low1:.1f} C{mid:.1f},{low1:.1f} {mid:.1f},{low0:.1f} {x0:.1f},{low0:.1f} Z"
    )


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(words)}</text>"


def _loss(x: float, y: float, height: float, words: str, place: float) -> str:
    """A tributary that bends down and ends in a label."""
    foot, low = HEIGHT - 34, y + height
    path = (
        f"M{x:.1f},{y:.1f} C{x + 28:.1f},{y:.1f} {place:.1f},{y + 8:.1f} {place:.1f},{foot:.1f} "
        f"L{place - height:.1f},{foot:.1f} "
        f"C{place - height:.1f},{low:.1f} {x + 20:.1f},{low:.1f} {x:.1f},{low:.1f} Z"
    )
    count, _, reason = words.partition(" ")
    middle = place - height / 2
    return (
        f'<path d="{path}" class="loss"/>'
        + _text(middle, foot + 14, count, "n", "middle")
        + _text(middle, foot + 28, reason, "why", "middle")
    )


def _fork(x: float, total: float, ends: Sequence[tuple[str, int]], low: float) -> list[str]:
    """The delta: the stream divides, and the branches part."""
    out, y, place = [], TOP, TOP - 14
    scale = (low - TOP) / max(total, 1)
    for i, (name, count) in enumerate(ends):
        height = max(count * scale, LEAST)
        out.append(
            f'<path d="{_band(x, WIDTH - 92, y, place, y + height, place + height)}" '
            f'class="water end{i}"/>'
        )
        middle = place + height / 2
        out.append(_text(WIDTH - 84, middle - 1, f"{count:,}", "n"))
        out.append(_text(WIDTH - 84, middle + 13, name, "why"))
        y, place = y + height, place + height + 26
    return out


def river(reaches: Sequence[Reach], ends: Sequence[tuple[str, int]]) -> Markup:
    """Inline SVG. Names are escaped; colours come from the page's CSS."""
    first = max(reaches[0].count, 1)
    step = (WIDTH - 250) / len(reaches)
    parts = []
    for i, reach in enumerate(reaches):
        x0, x1 = i * step, (i + 1) * step
        low0 = TOP + max(reach.count / first * STREAM, LEAST)
        left = reach.count - sum(n for _, n in reach.losses)
        low1 = TOP + max(left / first * STREAM, LEAST)
        parts.append(
            f'<path d="M{x0:.1f},{TOP} H{x1 + 0.5:.1f} V{low1:.1f} H{x1 - 1:.1f} '
            f'V{low0:.1f} H{x0:.1f} Z" class="water"/>'
        )
        parts.append(_text(x0 + 8, TOP - 20, f"{reach.count:,}", "n"))
        parts.append(_text(x0 + 8, TOP - 7, reach.name, "why"))
        y = low1
        # The outermost branch leaves last and falls nearest, so that branches do not cross.
        for k, (reason, count) in enumerate(reach.losses):
            height = max(count / first * STREAM, LEAST)
            place = x1 + 34 + height + (len(reach.losses) - 1 - k) * 74
            parts.append(_loss(x1 - 1, y, height, f"{count:,} {reason}", place))
            y += height
    last = reaches[-1].count - sum(n for _, n in reaches[-1].losses)
    low = TOP + max(last / first * STREAM, LEAST)
    parts += _fork(len(reaches) * step, last, ends, low)
    return Markup(
        f'<svg class="river" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" '
        f'aria-label="How many images went on at each stage">{DELTA}{"".join(parts)}</svg>'
    )
