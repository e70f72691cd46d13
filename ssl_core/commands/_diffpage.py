"""The page of ``headwater diff --html``: offline, one file, without scripts."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from ..report import _images
from ..report._figures import _figure, smooth
from ..report._theme import ACCENT, MUTED, png, styled
from ._sides import Side, told

MOST = 24  # pictures
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#16262e;"
    "background:#fdfcf9}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;"
    "border-bottom:1px solid #dde3e2}figure{display:inline-block;margin:.5rem;width:9rem;"
    "vertical-align:top;font-size:13px}figure img{width:100%;image-rendering:pixelated}"
    "img.wide{max-width:100%}.good{color:#2e7d4f}.bad{color:#b3382d}"
)


def render(a: Side, b: Side, found: dict[str, Any], root: Path) -> str:
    """The page for two sides and what :func:`diff.compare` found."""
    parts = [f"<h1>{escape(a.name)} → {escape(b.name)}</h1>"]
    parts += [_loss(a, b)]
    for part in ("metrics", "params", "counts"):
        parts.append(_rows(part.capitalize(), found[part]))
    for part in ("images", "predictions"):
        if found[part]:
            said = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in found[part].items())
            parts.append(f"<h2>{part.capitalize()}</h2><p>{escape(said)}</p>")
    parts.append(_pictures(a, b, root))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>headwater diff</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _rows(title: str, rows: dict[str, dict[str, Any]]) -> str:
    if not rows:
        return f"<h2>{title}</h2><p>No difference.</p>"
    lines = []
    for key, row in rows.items():
        change = f"{row['change']:+.4g}" if "change" in row else ""
        cells = "".join(f"<td>{escape(str(v))}</td>" for v in (key, row["a"], row["b"], change))
        lines.append(f"<tr>{cells}</tr>")
    head = "<tr><th></th><th>a</th><th>b</th><th></th></tr>"
    return f"<h2>{title}</h2><table>{head}{''.join(lines)}</table>"


def _loss(a: Side, b: Side) -> str:
    """Both loss curves in one figure."""
    logs = [(s, s.frame("pretrain", "log.csv")) for s in (a, b)]
    if any(log is None or "loss" not in log for _, log in logs):
        return ""
    with styled():
        figure, axes = _figure(7, 2.6)
        axis = axes[0, 0]
        for (one, log), colour in zip(logs, (MUTED, ACCENT), strict=True):
            loss = log["loss"].to_numpy(float)
            axis.plot(smooth(loss, max(1, len(loss) // 50)), color=colour, label=one.name)
        axis.set_title("loss by step")
        axis.legend()
        data = base64.b64encode(png(figure)).decode()
    return f'<img class="wide" alt="loss curves" src="data:image/png;base64,{data}">'


def _pictures(a: Side, b: Side, root: Path) -> str:
    """Held-out pictures that one side names rightly and the other does not; those first."""
    frame = told(a, b)
    if frame is None:
        return ""
    changed = frame[frame["prediction_a"] != frame["prediction_b"]]
    decided = (changed["correct_a"] != changed["correct_b"]).fillna(False)
    chosen = changed.assign(decided=decided).sort_values(
        ["decided", "sha256"], ascending=[False, True]
    )
    places = _places(a, b)
    figures = [_one(row, places, root) for row in chosen.head(MOST).itertuples(index=False)]
    return "<h2>Named otherwise</h2>" + ("".join(figures) or "<p>None.</p>")


def _places(a: Side, b: Side) -> dict[str, str]:
    """sha256 -> a path it was read from."""
    found: dict[str, str] = {}
    for one in (a, b):
        frame = one.frame("manifest", "manifest.parquet")
        if frame is not None:
            found |= dict(zip(frame["sha256"], frame["path"], strict=True))
    return found


def _one(row: Any, places: dict[str, str], root: Path) -> str:
    ref = places.get(row.sha256)
    uri = _images.uri(_images.from_disk(ref, root)) if ref else None
    picture = f'<img alt="" src="{uri}">' if uri else "<p>(not on this disk)</p>"
    said = []
    for side, name, right in (
        ("a", row.prediction_a, row.correct_a),
        ("b", row.prediction_b, row.correct_b),
    ):
        mark = "good" if right is True else "bad" if right is False else ""
        said.append(f'<span class="{mark}">{side}: {escape(str(name))}</span>')
    label = escape(str(row.label))
    return f"<figure>{picture}<figcaption>{label}<br>{'<br>'.join(said)}</figcaption></figure>"
