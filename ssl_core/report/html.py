"""Template values in, one self-contained HTML page out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ._theme import short

FOLDER = Path(__file__).parent


def policy(script: str) -> str:
    """Content security policy: only what is in the file itself, and only this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def percent(value: Any, digits: int = 1) -> str:
    """0.123 -> 12.3%; nothing for missing values."""
    return "–" if value is None or value != value else f"{100 * float(value):.{digits}f}%"


def p_text(value: Any) -> str:
    """A p-value as people write it."""
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def number(value: Any) -> str:
    """Thousands separated; floats with four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def decimal(value: Any) -> str:
    """A measured value, three significant digits at least; nothing for missing ones."""
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def render(context: Mapping[str, Any], name: str = "page", base: str = "") -> str:
    """The whole page ``name``, with its script and its style.

    With ``base`` the style is that page's, and its script runs first. Every value is escaped
    unless it is Markup made by this package.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.filters |= {
        "percent": percent,
        "p": p_text,
        "number": number,
        "decimal": decimal,
        "short": short,
    }
    scripts = [(FOLDER / f"{page}.js").read_text() for page in (base, name) if page]
    script = "".join(scripts)
    css = (FOLDER / f"{base or name}.css").read_text()
    own = {"style": Markup(css), "script": Markup(script)}
    page = env.get_template(f"{name}.html.j2")
    return page.render(**context, **own, policy=policy(script))
