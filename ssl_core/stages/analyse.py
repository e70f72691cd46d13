"""What encoders learnt: all measures and analyses, ours beside others, in one comparative report.

What was found of an encoder is kept in ``runs/analysis`` by its weights, the shards, the settings
and the source of measures: a second call computes only what is new.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plugins
from ..analyse import cka
from ..analyse._subject import Finding, Subject
from ..artifacts import (
    LINEAGE,
    atomic_dir,
    read_json,
    sha256_file,
    sha256_json,
    sha256_tree,
    write_bytes,
    write_json,
)
from ..config import Config, Paths
from ..progress import Reporter
from ..report import comparison
from ._subjects import subject
from .evaluate import COLUMNS, OURS, values


@dataclass
class Look:
    """All that was found of one encoder."""

    subject: Subject
    key: str  # of its weights
    findings: dict[str, Finding] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One line for each value (COLUMNS)."""
        rows = [
            {"encoder": self.subject.name, "measure": kind, **row}
            for kind, found in self.findings.items()
            for row in found.rows
        ]
        return pd.DataFrame(rows, columns=COLUMNS)


# ---- the cache ---------------------------------------------------------------------------------


def _read(file: Path) -> tuple[Finding, float] | None:
    if not file.exists():
        return None
    kept = read_json(file)
    pictures = {k: base64.b64decode(v) for k, v in kept["pictures"].items()}
    rows = [{k: float("nan") if v is None else v for k, v in row.items()} for row in kept["rows"]]
    return Finding(rows, pictures, kept["missing"]), kept["seconds"]


def _write(file: Path, found: Finding, seconds: float) -> None:
    pictures = {k: base64.b64encode(v).decode() for k, v in found.pictures.items()}
    rows = [{k: None if v != v else v for k, v in row.items()} for row in found.rows]
    record = {"rows": rows, "pictures": pictures, "missing": found.missing, "seconds": seconds}
    write_json(file, record)


def _cached(file: Path, make: Callable[[], Finding]) -> tuple[Finding, float]:
    """From an earlier call, or made now; how many seconds it took then."""
    if kept := _read(file):
        return kept
    start = time.monotonic()
    found = make()
    _write(file, found, time.monotonic() - start)
    return _read(file) or (found, 0.0)  # as a later call would see it


def _data(cfg: Config, paths: Paths) -> list[str]:
    """Digests of the images and of their masks."""
    folder = paths.root / cfg.analyse.masks
    drawn = sha256_tree(folder) if cfg.analyse.masks and folder.is_dir() else ""
    return [sha256_file(paths.shards / LINEAGE), drawn]


@cache
def _sources() -> list[str]:
    """Digests of all code that a finding may come from."""
    root = Path(__file__).parent.parent
    files = [*root.glob("evaluate/*.py"), *root.glob("analyse/*.py")]
    files += [root / f"{name}.py" for name in ("augment", "embed", "finetune")]
    return [sha256_file(file) for file in sorted(files)]


def _key(kind: str, name: str, cfg: Config, weights: str, data: list[str]) -> str:
    """What one finding depends on."""
    own = cfg.section("evaluate") | cfg.section("analyse")
    free = ("analyses", "encoders", "measures", "baselines")  # which, not how
    settings = {k: v for k, v in own.items() if k not in free}
    return f"{name}-{sha256_json([kind, _sources(), settings, cfg.seed, weights, data])[:16]}"


# ---- one encoder -------------------------------------------------------------------------------


def look(name: str, cfg: Config, paths: Paths, data: list[str], report: Reporter) -> Look:
    """Every measure of features and every analysis of one encoder; ``data`` as of :func:`_data`.

    Raises:
        HeadwaterError: no such encoder, an unknown measure or analysis, no labels.
    """
    who, weights = subject(name, cfg, paths, report)
    work, found = paths.runs / "analysis", Look(who, weights)
    chosen = cfg.analyse.analyses or tuple(plugins.names("analyse"))
    for kind, names in (("evaluate", cfg.evaluate.measures), ("analyse", chosen)):
        for one in names:
            file = work / f"{_key(kind, one, cfg, weights, data)}.json"
            make = _measure if kind == "evaluate" else _analyse
            finding, seconds = _cached(file, partial(make, one, found, cfg))
            found.findings[one], found.seconds[one] = finding, seconds
            report.log(f"{name} {one}: {_said(finding)} ({seconds:.1f} s)")
    return found


def _measure(name: str, found: Look, cfg: Config) -> Finding:
    who = found.subject
    return Finding(values(name, who.head, who.train, who.test, cfg))


def _analyse(name: str, found: Look, cfg: Config) -> Finding:
    result: Finding = plugins.load("analyse", name).run(found.subject, cfg.analyse)
    return result


def _said(finding: Finding) -> str:
    if finding.missing:
        return finding.missing
    row = next((r for r in finding.rows if r["slice"] == "all"), None)
    return f"{row['metric']} {row['value']:.3f}" if row else f"{len(finding.rows)} values"


# ---- encoders beside each other ----------------------------------------------------------------


def relations(
    looks: list[Look], cfg: Config, paths: Paths, data: list[str]
) -> dict[tuple[str, str], Finding]:
    """How alike the layers of every two encoders are (CKA)."""
    found = {}
    for a, b in combinations(looks, 2):
        key = _key("analyse", "cka", cfg, f"{a.key} {b.key}", data)
        make = partial(cka.between, a.subject, b.subject, cfg.analyse)
        pair = (a.subject.name, b.subject.name)
        found[pair] = _cached(paths.runs / "analysis" / f"between-{key}.json", make)[0]
    return found


# ---- the stage ---------------------------------------------------------------------------------


def _seen(look: Look) -> comparison.Seen:
    """What the page needs."""
    who = look.subject
    predicted, confidence = who.head.predict(who.test.features)
    size = f"{who.encoder.name}, {who.encoder.embed_dim} dimensions, {who.source.side} px"
    return comparison.Seen(
        who.name,
        size,
        who.train,
        who.test,
        predicted,
        confidence,
        {(kind, what): p for kind, f in look.findings.items() for what, p in f.pictures.items()},
        {kind: f.missing for kind, f in look.findings.items() if f.missing},
    )


def _plain(name: str) -> str:
    """An encoder's name as that of a folder."""
    return name.replace("/", "-").replace(":", "-")


def likeness_of(pairs: dict[tuple[str, str], Finding]) -> comparison.Likeness:
    """The CKA of both last layers, and the picture of all layers."""
    values = {p: r["value"] for p, f in pairs.items() for r in f.rows if r["slice"] == "all"}
    pictures = {p: data for p, f in pairs.items() for data in f.pictures.values()}
    return comparison.Likeness(values, pictures)


def write(looks: list[Look], out: Path, cfg: Config, paths: Paths, data: list[str]) -> pd.DataFrame:
    """results.parquet, the pictures, what is missing, and index.html."""
    table = pd.concat([one.table() for one in looks], ignore_index=True)
    table.to_parquet(out / "results.parquet", index=False)
    missing = {}
    for one in looks:
        name = _plain(one.subject.name)
        for kind, finding in one.findings.items():
            if finding.missing:
                missing[f"{one.subject.name} {kind}"] = finding.missing
            for what, png in finding.pictures.items():
                write_bytes(out / "pictures" / name / f"{kind}-{what}.png", png)
    write_json(out / "missing.json", missing)
    likeness = relations(looks, cfg, paths, data)
    for (a, b), finding in likeness.items():
        for what, png in finding.pictures.items():
            write_bytes(out / "pictures" / f"{_plain(a)} and {_plain(b)}" / f"{what}.png", png)
    page = comparison.render(
        [_seen(one) for one in looks], table, likeness_of(likeness), paths.shards, cfg.seed
    )
    write_bytes(out / "index.html", page.encode())
    return table


def run(cfg: Config, paths: Paths, encoders: tuple[str, ...] = ()) -> dict[str, Any]:
    """Write reports/analysis/: results.parquet, pictures/ and the comparative page index.html.

    Args:
        encoders: names as in ``analyse.encoders``; none: our own, and those that are set there.

    Raises:
        HeadwaterError: no such encoder, measure or analysis; shards without labels.
    """
    names = tuple(dict.fromkeys(encoders or (OURS, *cfg.analyse.encoders)))
    with Reporter("analyse") as report, atomic_dir(paths.analysis) as out:
        looks, data = [], _data(cfg, paths)
        with report.bar(len(names), "encoders") as advance:
            for name in names:
                looks.append(look(name, cfg, paths, data, report))
                advance()
        table = write(looks, out, cfg, paths, data)
        seconds = {o.subject.name: round(sum(o.seconds.values()), 1) for o in looks}
    return {
        "encoders": list(names),
        "values": len(table),
        "seconds": seconds,
        "page": (paths.analysis / "index.html").as_posix(),
    }
