"""``headwater trace``: where one image went."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import forgotten
from ..artifacts import sha256_file
from ..errors import HeadwaterError
from . import _sightings
from ._common import Json, emit, table
from ._sightings import Row
from ._sightings import table as _table

if TYPE_CHECKING:
    from ..config import Paths

SHORTEST = 6  # hex digits of a prefix
CURATED = (
    "path",
    "source",
    "split",
    "keep",
    "reason",
    "detail",
    "dup_group",
    "dup_of",
    "cluster",
)


def command(
    image: Annotated[str, typer.Argument(help="path, ref as in the manifest, or sha256 prefix")],
    as_json: Json = False,
) -> None:
    """Say where an image went: verdict, copies, split, shard, models that saw it, predictions.

    Examples:

        headwater trace data/raw/cats/001.jpg

        headwater trace 3fa94c --json
    """
    from ..config import Paths

    found = trace(Paths(), image)
    if as_json:
        emit(found)
    else:
        typer.echo(text(found))


def trace(paths: Paths, image: str) -> Row:
    """Everything that the products say of one content.

    Raises:
        HeadwaterError: nothing is known of it, or the prefix fits several.
    """
    sha, refs = identify(paths, image)
    curated = _rows(paths.curated / "curated.parquet", "sha256", sha)
    known = _rows(paths.manifest / "manifest.parquet", "sha256", sha)
    found: Row = {
        "sha256": sha,
        "paths": sorted(refs),
        "manifest": known,
        "rejects": [r for ref in refs for r in _rejects(paths, ref)],
        "correction": _correction(paths, sha),
        "validation": _validation(paths, sha, refs) if known else {},
        "curation": [_pick(r, CURATED) for r in curated],
        "copies": _copies(paths, curated),
        "shard": [
            _pick(r, ("shard", "split", "key", "ext", "offset", "size"))
            for r in _rows(paths.shards / "index.parquet", "key", sha)
        ],
        "test": _rows(paths.evaluation / "test_predictions.parquet", "sha256", sha),
        "models": list(_sightings.models(paths, sha, {r["group"] for r in curated})),
        "predictions": list(_predictions(paths, sha)),
        "forgotten": [r for r in forgotten.entries(paths.forgotten) if r["sha256"] == sha],
    }
    if not any(v for k, v in found.items() if k not in ("sha256", "paths")):
        rule = "is in no manifest, reject list, shard, model or prediction log of this project"
        raise HeadwaterError(f"image {image}", rule, "run headwater ingest, or check the name")
    return found | {"verdict": verdict(found)}


def verdict(found: Row) -> str:
    """What became of it, in one sentence; the furthest place that it reached."""
    if found["forgotten"]:
        return "forgotten: it is never taken again"
    if found["rejects"] and not found["manifest"]:
        return f"rejected at ingest ({found['rejects'][0]['reason']})"
    kept = [r for r in found["curation"] if r["keep"]]
    if kept and kept[0]["split"] == "test":
        return "held out: evaluated on, never trained on"
    if kept:
        made = str(kept[0].get("source", "")).startswith("synthetic:")
        return f"kept for training, {kept[0]['source']}" if made else "kept for training"
    if found["curation"]:
        return f"left out by curation ({found['curation'][0]['reason']})"
    if found["validation"].get("quarantined"):
        return "quarantined by validation"
    return "in the manifest, not yet curated" if found["manifest"] else "known from deployment only"


# ---- which image -------------------------------------------------------------------------------


def identify(paths: Paths, image: str) -> tuple[str, set[str]]:
    """(sha256, refs). A rejected file has no content hash: its sha256 may be empty."""
    manifest = paths.manifest / "manifest.parquet"
    known = {r["path"] for r in _rows(paths.manifest / "rejects.parquet", "path", image)}
    by_ref = _rows(manifest, "path", image)
    if by_ref:
        sha = str(by_ref[0]["sha256"])
        return sha, {r["path"] for r in _rows(manifest, "sha256", sha)}
    if Path(image).is_file():
        sha = sha256_file(Path(image))
        same = {r["path"] for r in _rows(manifest, "sha256", sha)}
        return sha, same | known | {_ref(paths, image)}
    if known:
        return "", known
    return _by_prefix(paths, image)


def _ref(paths: Paths, image: str) -> str:
    full, root = Path(image).absolute(), paths.root.absolute()
    return (full.relative_to(root) if full.is_relative_to(root) else full).as_posix()


def _by_prefix(paths: Paths, prefix: str) -> tuple[str, set[str]]:
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},64}}", prefix):
        rule = f"is no file, no ref of the manifest, and no {SHORTEST} to 64 hex digits of a sha256"
        raise HeadwaterError(f"image '{prefix[:120]}'", rule, "check the name")
    found: dict[str, set[str]] = {}
    curated = paths.curated / "curated.parquet"  # synthetic images are in no manifest
    for file in (paths.manifest / "manifest.parquet", curated, *_logs(paths)):
        for row in _starting(file, prefix):
            found.setdefault(row["sha256"], set()).add(row["path"])
    for row in forgotten.entries(paths.forgotten):
        if row["sha256"].startswith(prefix):
            found.setdefault(row["sha256"], set())
    if len(found) > 1:
        names = ", ".join(sorted(found)[:3])
        raise HeadwaterError(f"prefix {prefix}", f"fits {len(found)} images ({names})", "give more")
    if not found:
        raise HeadwaterError(f"prefix {prefix}", "fits no image", "check it, or give the path")
    return next(iter(found.items()))


# ---- reading -----------------------------------------------------------------------------------


def _rows(file: Path, column: str, value: str) -> list[Row]:
    return _table(file, [(column, "==", value)])


def _starting(file: Path, prefix: str) -> list[Row]:
    import pyarrow.compute as pc

    return _table(file, pc.starts_with(pc.field("sha256"), prefix), ["sha256", "path"])


def _pick(row: Row, keys: tuple[str, ...]) -> Row:
    return {k: row[k] for k in keys if k in row}


def _rejects(paths: Paths, ref: str) -> list[Row]:
    return _rows(paths.manifest / "rejects.parquet", "path", ref)


def _correction(paths: Paths, sha: str) -> Row:
    """What people decided about its label."""
    from ..stages import _corrections

    return dict(_corrections.read(paths.corrections).get(sha, {}))


def _validation(paths: Paths, sha: str, refs: set[str]) -> Row:
    """Whether it was quarantined, and what CleanVision said."""
    if not (paths.validation / "issues.parquet").exists():
        return {}
    bad = [r for ref in refs for r in _rows(paths.validation / "quarantine.parquet", "path", ref)]
    seen = _rows(paths.validation / "issues.parquet", "sha256", sha)
    issues = sorted({k for row in seen for k, v in row.items() if v is True})
    return {"quarantined": bool(bad), "examined": bool(seen), "issues": issues}


def _copies(paths: Paths, curated: list[Row]) -> list[Row]:
    """Other members of its duplicate groups."""
    own = {r["path"] for r in curated}
    groups = sorted({r["dup_group"] for r in curated if r.get("dup_group", -1) >= 0})
    rows = (
        _table(paths.curated / "curated.parquet", [("dup_group", "in", groups)]) if groups else []
    )
    keys = ("path", "sha256", "dup_group", "keep", "reason")
    return [_pick(r, keys) for r in rows if r["path"] not in own]


def _logs(paths: Paths) -> list[Path]:
    places = (paths.predictions, *paths.deploy.glob("shadow/*"))
    return sorted(f for p in places for f in p.glob("date=*/part-*.parquet"))


def _predictions(paths: Paths, sha: str) -> Iterator[Row]:
    """What was said of it in deployment, and by whom."""
    keys = ("path", "prediction", "confidence", "label", "model")
    for file in _logs(paths) if sha else ():
        for row in _rows(file, "sha256", sha):
            yield {"date": file.parent.name.removeprefix("date="), **_pick(row, keys)}


# ---- for people --------------------------------------------------------------------------------


def text(found: Row) -> str:
    """One line per place."""
    rows = [("sha256", found["sha256"] or "unknown: it could not be read")]
    rows += [("verdict", found["verdict"]), *(("path", p) for p in found["paths"])]
    rows += [("forgotten", f"{r['requested_at']} {r['reason']}") for r in found["forgotten"]]
    rows += [("rejected", f"{r['reason']}: {r['detail']}") for r in found["rejects"]]
    rows += [("manifest", _said(r, ("label", "group", "source"))) for r in found["manifest"]]
    if found["correction"]:
        rows.append(("corrected", _said(found["correction"], ("given", "label"))))
    if found["validation"]:
        v = found["validation"]
        said = ", ".join(v["issues"]) or ("no issue" if v["examined"] else "not looked at")
        rows.append(("validation", ("quarantined; " if v["quarantined"] else "passed; ") + said))
    for r in found["curation"]:
        why = ": ".join(part for part in (r["reason"], r.get("detail")) if part)
        fate = "kept" if r["keep"] else f"dropped ({why})"
        if not r["keep"] and r.get("dup_of"):
            fate += f", for {r['dup_of'][:12]}"
        group = "no copies" if r["dup_group"] < 0 else f"duplicate group {r['dup_group']}"
        rows.append(("curation", f"{fate}, split {r['split']}, cluster {r['cluster']}, {group}"))
    rows += [
        ("copy", f"{r['path']} ({'kept' if r['keep'] else r['reason']})") for r in found["copies"]
    ]
    rows += [
        ("shard", f"{r['shard']} at byte {r['offset']}, {r['size']} bytes") for r in found["shard"]
    ]
    rows += [("held out", _said(r, ("label", "prediction", "confidence"))) for r in found["test"]]
    rows += [
        ("model", f"{r['model']} ({r['state']}) trained on {r['trained_on']}")
        for r in found["models"]
    ]
    rows += [
        ("predicted", f"{r['date']} {_said(r, ('prediction', 'confidence', 'label', 'model'))}")
        for r in found["predictions"]
    ]
    return table(rows, 0)


def _said(row: Row, keys: tuple[str, ...]) -> str:
    parts = ((k, row.get(k)) for k in keys)
    return ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in parts)
