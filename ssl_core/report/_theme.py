"""One palette for plots and page. In SVG each colour becomes a CSS variable, so plots follow
the reader's light or dark mode; in PNG the light values are used.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, SOFT, GRID, PAPER = "#16262e", "#5b6b73", "#dde3e2", "#fdfcf9"
ACCENT, WARM, GOOD, BAD, MUTED = "#0e7c86", "#c8553d", "#2e7d4f", "#b3382d", "#a9b4b6"
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--grid",
    PAPER: "--paper",
    ACCENT: "--accent",
    WARM: "--warm",
    GOOD: "--good",
    BAD: "--bad",
    MUTED: "--muted",
}
# Twelve hues that keep apart on white and on near-black (Okabe-Ito and Tol, toned).
HUES = (
    "#0e8a94",
    "#d9683c",
    "#6d6fd1",
    "#c9a227",
    "#3f9b5b",
    "#c5508f",
    "#4c8fd6",
    "#8a6b4f",
    "#9bbf3b",
    "#a05cc7",
    "#e08fa0",
    "#5f7f86",
)
STYLE: dict[Any, Any] = {  # the stub allows no keys but its own literals
    "font.size": 9.5,
    "font.family": ["sans-serif"],
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 130,
    "text.parse_math": False,  # a label with a dollar sign is text
    "svg.fonttype": "none",
    "svg.hashsalt": "headwater",
}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib settings for one picture; a font without some glyph is no reason to warn."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def png(figure: Any) -> bytes:
    """A figure on paper-coloured ground, as PNG bytes."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format="png", facecolor=PAPER, metadata={"Software": None})
    return out.getvalue()


def svg(figure: Any, name: str) -> str:
    """A figure as inline SVG whose colours are the page's variables. ``name`` keeps ids apart."""
    out = io.StringIO()
    with styled():
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(width|height)="[\d.]+pt"', "", text, count=2)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font(?:-family)?: [^;\"]*'[^\"]*?(?=[;\"])", _font, text)
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)


def _font(match: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", match[0])
    weight = "bold " if "bold" in match[0] else ""
    return f"font: {weight}{size[0]} var(--sans)" if size else "font-family: var(--sans)"


def short(text: object, limit: int = 26) -> str:
    """Printable, single-line and not too long."""
    plain = "".join(c for c in str(text) if unicodedata.category(c)[0] != "C")
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
