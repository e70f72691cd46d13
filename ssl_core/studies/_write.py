"""Run a study by name and leave its files: rows, claims, a page and pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plugins
from ..artifacts import atomic_file, write_bytes, write_json
from ..config import Config, Paths
from ._common import RULE, SAID, Study

KIND = "studies"


def spelled(name: str) -> str:
    """The file's name of a study that a person may have written with hyphens."""
    return name.replace("-", "_")


def run(name: str, cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Write reports/study-NAME.parquet, .json, .md and .png.

    Raises:
        HeadwaterError: no such study (the message lists them), or what the study raises.
    """
    study: Study = plugins.load(KIND, spelled(name)).run(cfg, paths, quick)
    write(study, paths.reports, f"study-{spelled(name).replace('_', '-')}", cfg, quick)
    return study


def write(study: Study, folder: Path, stem: str, cfg: Config, quick: bool = False) -> None:
    """All files of a study; the first picture is ``stem``.png, others add their names."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f"{stem}.parquet") as temp:
        study.rows.to_parquet(temp, engine="pyarrow", index=False)
    files = {}
    for number, (name, png) in enumerate(study.pictures.items()):
        files[name] = f"{stem}.png" if not number else f"{stem}-{name}.png"
        write_bytes(folder / files[name], png)
    settings = {"study": cfg.section("study"), "bench": cfg.section("bench"), "quick": quick}
    told = {
        "title": study.title,
        "claims": [asdict(c) for c in study.claims],
        "left_out": list(study.left_out),
        "pictures": files,
    }
    write_json(folder / f"{stem}.json", told | {"settings": settings})
    write_bytes(folder / f"{stem}.md", markdown(study, files, quick).encode())


def markdown(study: Study, files: dict[str, str], quick: bool = False) -> str:
    """The page."""
    lines = [f"# {study.title}", "", study.question, ""]
    if quick:
        lines += ["**A quick run: a tenth of the compute and two seeds. It proves nothing.**", ""]
    lines += ["## What the data says", "", RULE, ""]
    lines += [f"- **{SAID[c.verdict]}**: {c.sentence()}" for c in study.claims]
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
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    rows = frame.itertuples(index=False, name=None)
    return lines + [f"| {' | '.join(cell(v) for v in row)} |" for row in rows]
