"""PNG bytes as markdown that the Dagster UI shows inline."""

from __future__ import annotations

import base64
import io

import dagster as dg
from PIL import Image

WIDTH = 960  # px that fit into the UI's dialog, which cuts off what is wider and cannot scroll


def picture(png: bytes | None, text: str) -> dict[str, dg.MarkdownMetadataValue]:
    """``{text: image}``, or nothing where there is no picture."""
    if png is None:
        return {}
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((WIDTH, image.height))
        image.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return {text: dg.MetadataValue.md(f"![{text}](data:image/png;base64,{data})")}
