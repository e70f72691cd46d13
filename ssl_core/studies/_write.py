"""Run a study by name and leave its files: rows, claims, a page and pictures."""

from __future__ import annotations

import ast
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plugins
from ..artifacts import atomic_file, write_bytes, write_json
from ..config import Config, Paths
from ..report import _tables
from ._common import RULE, SAID, Study

KIND = "studies"


def spelled(name: str) -> str:
    """The file's name of a study that a person may have written with hyphens."""
    return name.replace("-", "_")


def stem(name: str) -> str:
    """What the names of its files begin with."""
    return f"study-{name.replace('_', '-')}"


def about(name: str) -> str:
    """The first line of a study's file, read without its imports."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    return (ast.get_docstring(tree) or name).split("\n")[0]


def run(name: str, cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Write reports/study-NAME.parquet, .json, .md and .png.

    Raises:
        HeadwaterError: no such study (the message lists them), or what the study raises.
    """
    study: Study = plugins.load(KIND, spelled(name)).run(cfg, paths, quick)
    write(study, paths.reports, stem(name), cfg, quick)
    return study


def write(study: Study, folder: Path, start: str, cfg: Config, quick: bool = False) -> None:
    """All files of a study; the first picture is ``start``.png, others add their names."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f"{start}.parquet") as temp:
        study.rows.to_parquet(temp, engine="pyarrow", index=False)
    files = {}
    for number, (name, png) in enumerate(study.pictures.items()):
        files[name] = f"{start}.png" if not number else f"{start}-{name}.png"
        write_bytes(folder / files[name], png)
    settings = {"study": cfg.section("study"), "bench": cfg.section("bench"), "quick": quick}
    told = {
        "title": study.title,
        "claims": [asdict(c) for c in study.claims],
        "left_out": list(study.left_out),
        "pictures": files,
    }
    write_json(folder / f"{start}.json", told | {"settings": settings})
    write_bytes(folder / f"{start}.md", markdown(study, files, quick).encode())


def markdown(study: Study, files: dict[str, str], quick: bool = False) -> str:
    """The page."""
    lines = [f"# {study.title}", "", study.question, ""]
    if quick:
        lines += ["**A quick run: a tenth of the compute and two seeds. It proves nothing.**", ""]
    lines += ["## What the data says", "", RULE, ""]
    for text, source in dict.fromkeys((c.text, c.source) for c in study.claims):
        lines.append(f"- {text} ({source}).")
        same = [c for c in study.claims if (c.text, c.source) == (text, source)]
        lines += [f"  - {c.set_}: **{SAID[c.verdict]}**. {c.found()}" for c in same]
    for name, file in files.items():
        lines += ["", f"![{name}]({file})"]
    lines += ["", "## How", ""] + [f"- {text}" for text in study.design]
    if study.left_out:
        lines += ["", "## Left out", ""] + [f"- {text}" for text in study.left_out]
    lines += ["", "## Numbers", "", "Mean and half a 95 % interval over seeds.", ""]
    for heading, table in study.tables.items():
        lines += [f"### {heading}", "", *_table(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(frame: pd.DataFrame) -> list[str]:
    def cell(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    head = [str(c).replace("_", " ") for c in frame.columns]
    rows = frame.itertuples(index=False, name=None)
    return _tables.markdown(head, [[cell(v) for v in row] for row in rows])
