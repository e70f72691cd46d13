"""PNG bytes as markdown that the Dagster UI shows inline."""

from __future__ import annotations

import base64

import dagster as dg


def picture(png: bytes | None, text: str) -> dict[str, dg.MarkdownMetadataValue]:
    """``{text: image}``, or nothing where there is no picture."""
    if png is None:
        return {}
    data = base64.b64encode(png).decode()
    return {text: dg.MetadataValue.md(f"![{text}](data:image/png;base64,{data})")}
