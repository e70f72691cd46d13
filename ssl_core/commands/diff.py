"""``headwater diff``: two projects, products, models or git revisions side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

from ._common import Json, emit, table

if TYPE_CHECKING:
    from ._sides import Side

SHOWN = 40  # lines of one table


def command(
    a: Annotated[str, typer.Argument(help="git revision, project, product, model id or champion")],
    b: Annotated[str, typer.Argument(help="the same; . is this project as it is now")] = ".",
    html: Annotated[Path | None, typer.Option(help="also a page with the pictures")] = None,
    as_json: Json = False,
) -> None:
    """Compare data, parameters, metrics and predictions of two states.

    Of a git revision the products are read from DVC's cache, without a checkout. The page shows
    loss curves and the held-out pictures that are named otherwise. Examples:

        headwater diff HEAD~1 . --html reports/diff.html

        headwater diff champion 1a2b3c4d5e6f --json
    """
    from ..config import Paths
    from . import _sides

    paths = Paths()
    left, right = _sides.side(a, paths), _sides.side(b, paths)
    found = compare(left, right)
    if html is not None:
        from ..artifacts import write_bytes
        from ._diffpage import render

        write_bytes(html, render(left, right, found, paths.root).encode())
        found["html"] = html.as_posix()
    if as_json:
        emit(found)
    else:
        typer.echo(text(found))


def compare(a: Side, b: Side) -> dict[str, Any]:
    """What differs; ``images`` and ``predictions`` where both sides hold them."""
    return {
        "a": {"name": a.name, "kind": a.kind},
        "b": {"name": b.name, "kind": b.kind},
        "params": changes(a.params, b.params),
        "counts": changes(a.counts, b.counts),
        "metrics": changes(a.metrics, b.metrics),
        "images": images(a, b),
        "predictions": predictions(a, b),
    }


def changes(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys that differ, with both values; a number has its change too. Absent is null."""
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys([*a, *b]):
        one, two = a.get(key), b.get(key)
        if one == two or key.endswith("content"):  # a hash: images says it better
            continue
        found[key] = {"a": one, "b": two}
        if _number(one) and _number(two):
            found[key]["change"] = two - one
    return found


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def images(a: Side, b: Side) -> dict[str, Any] | None:
    """How the manifests differ, by content."""
    one, two = (s.frame("manifest", "manifest.parquet") for s in (a, b))
    if one is None or two is None:
        return None
    first, second = (f.drop_duplicates("sha256").set_index("sha256") for f in (one, two))
    both = first.index.intersection(second.index)
    was, now = first.loc[both, "label"].fillna(""), second.loc[both, "label"].fillna("")
    return {
        "only_a": len(first.index.difference(second.index)),
        "only_b": len(second.index.difference(first.index)),
        "both": len(both),
        "relabelled": int((was != now).sum()),
    }


def predictions(a: Side, b: Side) -> dict[str, Any] | None:
    """On how many held-out images the sides agree, and which way they differ."""
    from ._sides import told

    frame = told(a, b)
    if frame is None:
        return None
    good = frame.dropna(subset=["correct_a", "correct_b"])
    one, two = good["correct_a"].astype(bool), good["correct_b"].astype(bool)
    return {
        "images": len(frame),
        "same": int((frame["prediction_a"] == frame["prediction_b"]).sum()),
        "mended": int((~one & two).sum()),
        "spoilt": int((one & ~two).sum()),
    }


def text(found: dict[str, Any]) -> str:
    """Tables for people."""
    a, b = found["a"], found["b"]
    lines = [f"a  {a['name']} ({a['kind']})", f"b  {b['name']} ({b['kind']})"]
    for part in ("params", "counts", "metrics"):
        rows = [(k, _short(v["a"]), _short(v["b"]), _gain(v)) for k, v in found[part].items()]
        lines += ["", part.capitalize() if rows else f"{part.capitalize()}: no difference"]
        if rows:
            lines.append(table([("", "a", "b", ""), *rows[:SHOWN]]))
        if len(rows) > SHOWN:
            lines.append(f"  ... and {len(rows) - SHOWN} more: --json")
    for part in ("images", "predictions"):
        if found[part]:
            said = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in found[part].items())
            lines += ["", f"{part.capitalize()}: {said}"]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text_ = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text_ if len(text_) < 40 else text_[:37] + "..."


def _gain(row: dict[str, Any]) -> str:
    return f"{row['change']:+.4g}" if "change" in row else ""
