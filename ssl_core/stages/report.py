"""One offline HTML page about everything: data, training, features, results and deployment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from ..artifacts import sha256_json, write_bytes
from ..config import Config, Paths
from ..progress import Reporter
from ..report import _results, _sections, html
from . import monitor

CONTENTS = (
    ("top", "Overview"),
    ("data", "Data"),
    ("training", "Pretraining"),
    ("features", "What it learned"),
    ("evaluation", "Evaluation"),
    ("promotion", "Promotion"),
    ("deployment", "Deployment"),
    ("lineage", "Lineage"),
)


def _headline(paths: Paths, history: pd.DataFrame) -> tuple[str, str]:
    """Title and standfirst from what is known."""
    frame = _results.results(paths)
    row = None if frame is None else _results.pick(frame, _results.OURS, "linear")
    if row is None:
        return "An encoder in the making", "Stages that have run are shown; the rest say so."
    title = f"The encoder names {row.value:.0%} of held-out images correctly"
    text = "A linear probe on its frozen features, on groups of images it has never seen."
    if not len(history):
        return title, text
    last, harmed = history.iloc[-1], int((history["verdict"] == "harm").sum())
    days = f"{harmed} of {len(history)} days in deployment proved harmful"
    return title, f"{text} {days}; the latest, {last['date']}, is judged “{last['verdict']}”."


def gather(cfg: Config, paths: Paths, report: Reporter) -> dict[str, Any]:
    """Values of every section; a product that is not there only leaves its own section empty."""
    history = monitor.history(paths)
    title, standfirst = _headline(paths, history)
    context: dict[str, Any] = {
        "contents": CONTENTS,
        "title": title,
        "standfirst": standfirst,
        "cards": _results.cards(paths, history),
        "river": _sections.flow(paths),
        "seeds": _results.seeds(paths),
        "lineage": _results.lineage(paths),
        "log": _results.registry(paths),
    }
    parts: dict[str, Callable[[], Any]] = {
        "rejects": lambda: _sections.rejects(paths),
        "validation": lambda: _sections.validation(paths),
        "curation": lambda: _sections.curation(paths),
        "training": lambda: _sections.training(paths),
        "map": lambda: _sections.feature_map(paths, cfg.seed),
        "retrieval": lambda: _sections.retrieval(paths, cfg.seed),
        "patches": lambda: _sections.patches(paths, cfg.seed),
        "evaluation": lambda: _results.evaluation(paths),
        "promotion": lambda: _results.promotion(paths),
        "deployment": lambda: _results.deployment(paths, history),
    }
    with report.bar(len(parts), "sections") as advance:
        for name, part in parts.items():
            context[name] = part()
            advance()
    return context


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write reports/report.html and a copy under its content's id. Works at any stage."""
    with Reporter("report") as report:
        context = gather(cfg, paths, report)
        name = sha256_json(html.render({**context, "id": ""}))[:12]
        page = html.render({**context, "id": name}).encode()
        for file in (paths.reports / "report.html", paths.reports / f"report-{name}.html"):
            write_bytes(file, page)
        empty = [k for k, v in context.items() if isinstance(v, dict) and "missing" in v]
        report.log(f"{len(page) / 2**20:.1f} MB in {paths.reports / 'report.html'}")
    return {
        "file": (paths.reports / "report.html").as_posix(),
        "id": name,
        "bytes": len(page),
        "empty_sections": empty,
    }
