"""``headwater forget``: an image goes, does not come back, and who learned from it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import forgotten
from ..errors import HeadwaterError
from . import _sightings
from ._common import Json, emit
from ._sightings import Row, table
from ._state import leftovers, workers
from .trace import identify

if TYPE_CHECKING:
    from ..config import Paths

COMPOSED = "composite"  # the generator that pastes parts of images
ADVICE = {
    "champion": "it serves: `headwater run` trains a successor without the image; then delete it",
    "latest encoder": "stale now: `headwater run` trains another",
    "training": "it would not be continued: delete the folder",
    "benchmark": "delete the folder: `headwater bench-methods` trains again",
}
DELETE = "`headwater clean --models 0 --yes` deletes retired models, `dvc gc` their old versions"
COMMIT = "dvc commit -f ingest validate seed_embed curate shard"


def command(
    image: Annotated[str, typer.Argument(help="path, ref as in the manifest, or sha256")],
    reason: Annotated[str, typer.Option(help="kept in data/forgotten.csv: name no person")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    as_json: Json = False,
) -> None:
    """Forget an image: it never comes back, products lose it, checkpoints that saw it are named.

    Only shards that hold it are written again. Your own sources are left as they are. A call that
    was interrupted is finished by the same call. Examples:

        headwater forget data/raw/cats/001.jpg --dry-run

        headwater forget 3fa94c0d --reason "request 2026-117"
    """
    from ..config import Paths

    found = forget(Paths(), image, reason, dry_run)
    if as_json:
        emit(found)
    else:
        typer.echo(text(found))


def forget(paths: Paths, image: str, reason: str = "", dry_run: bool = False) -> Row:
    """What was (or would be) done, what is left, and which checkpoints saw the image.

    Raises:
        HeadwaterError: an unknown image, a stage at work, or a product that a crash left aside.
    """
    from . import _purge

    _require_quiet(paths)
    sha, refs = which(paths, image)
    target = _purge.Target(sha, frozenset({sha, *composed(paths, sha)}), frozenset(refs))
    models = [r | {"advice": _advice(r)} for r in _sightings.models(paths, sha, set())]
    steps, hit = _purge.steps(paths, target), _purge.affected(paths, target)
    found: Row = {
        "sha256": sha,
        "paths": sorted(refs),
        "dry_run": dry_run,
        "removed": [s.what for s in steps],
        "shards": hit,
        "models": models,
        "left": left(paths, sha, refs),
    }
    if not dry_run:
        lock = paths.runs / "forget.lock"
        if forgotten.add(paths.forgotten, lock, sha, reason):
            forgotten.note(paths.requests, "request", sha)
        for step in steps:
            step.act()
        names = [m["model"] for m in models]
        forgotten.note(paths.requests, "done", sha, shards=hit, models=names)
    return found


def _require_quiet(paths: Paths) -> None:
    if busy := workers(paths):
        names = ", ".join(f"{w['stage']} (pid {w['pid']})" for w in busy)
        raise HeadwaterError(names, "is at work in this project", "wait for it, then forget")
    if aside := [x for x in leftovers(paths) if x.only]:
        rule = "is a product that a crash left under another name"
        raise HeadwaterError(aside[0].path, rule, "headwater doctor says how to put it back")


def which(paths: Paths, image: str) -> tuple[str, set[str]]:
    """(sha256, refs). A whole sha256 may be forgotten before the image ever came.

    Raises:
        HeadwaterError: nothing is known of it, the prefix fits several, or it has no content.
    """
    try:
        sha, refs = identify(paths, image)
    except HeadwaterError:
        if forgotten.SHA.fullmatch(image):
            return image, set()
        raise
    if not sha:
        rule = "was rejected before its content was known"
        raise HeadwaterError(f"image {image}", rule, "delete the file, or give its sha256")
    return sha, refs


def composed(paths: Paths, sha: str) -> set[str]:
    """Synthetic images that hold parts of it."""
    rows = table(paths.curated / "synthetic.parquet", [("generator", "==", COMPOSED)])
    return {r["sha256"] for r in rows if sha in r["parents"].split()}


def _advice(row: Row) -> str:
    return ADVICE.get(row["state"], DELETE)


# ---- what stays --------------------------------------------------------------------------------


def left(paths: Paths, sha: str, refs: set[str]) -> list[str]:
    """What still holds the image or something made of it, and what to do about that."""
    own = sorted(r for r in refs if not r.startswith("data/collected/"))
    found = [f"{r}: yours, not deleted; ingest lists it as a reject from now on" for r in own]
    found += _copies(paths, sha)
    for file in sorted(paths.deploy.glob("predictions/date=*/part-*.parquet")):
        for row in table(file, [("sha256", "==", sha)], ["path"]):
            day = file.parent.relative_to(paths.root).as_posix()
            found.append(f"{row['path']}, and its features in {day}: the log of what was served")
    for file in sorted(paths.registry.glob("models/*/reference.parquet")):
        if table(file, [("sha256", "==", sha)], ["sha256"]):
            found.append(f"model {file.parent.name}: its features, in the reference. {DELETE}")
    if paths.corrections.exists() and sha in paths.corrections.read_text(encoding="utf-8"):
        found.append("data/corrections.csv: a line with its path and label, which git keeps too")
    return found + _learned(paths, sha) + _stored(paths)


def _copies(paths: Paths, sha: str) -> list[str]:
    file = paths.curated / "curated.parquet"
    groups = {r["dup_group"] for r in table(file, [("sha256", "==", sha)]) if r["dup_group"] >= 0}
    rows = table(file, [("dup_group", "in", sorted(groups))]) if groups else []
    near = sorted({r["path"] for r in rows if r["sha256"] != sha})
    return [f"{path}: a near copy; forget it by itself if it is meant too" for path in near]


def _learned(paths: Paths, sha: str) -> list[str]:
    """Generators that were trained on it."""
    kept = table(paths.curated / "curated.parquet", [("sha256", "==", sha), ("keep", "==", True)])
    rows = table(
        paths.curated / "synthetic.parquet", [("generator", "!=", COMPOSED)], ["generator"]
    )
    if not kept or kept[0]["split"] != "train":
        return []
    names = sorted({r["generator"] for r in rows})
    return [f"synthetic images of '{n}', which learned from it: headwater curate" for n in names]


def _stored(paths: Paths) -> list[str]:
    found = []
    if (paths.shards / "place.json").exists():
        from ..artifacts import read_json

        url = read_json(paths.shards / "place.json")["url"]
        found.append(f"{url}: nothing is deleted from a bucket: aws s3 rm --recursive {url}")
    if (paths.root / ".dvc").is_dir():
        gc = "dvc gc --workspace --cloud"
        found.append(f"DVC's cache and remotes: {COMMIT}; then {gc} (all older versions go)")
    return found


# ---- for people --------------------------------------------------------------------------------


def text(found: Row) -> str:
    """What, then what is left, then who learned from it."""
    will = "Would be removed" if found["dry_run"] else "Removed"
    parts: list[tuple[str, list[Any]]] = [
        (f"{will} of {found['sha256']}", found["removed"]),
        ("Left, and not ours to remove", found["left"]),
        (
            "Checkpoints that saw it",
            [f"{m['model']} ({m['state']}): {m['advice']}" for m in found["models"]],
        ),
    ]
    lines = [f"{head}:\n" + "\n".join(f"  {x}" for x in rows) for head, rows in parts if rows]
    if not found["models"]:
        lines.append("No checkpoint saw it.")
    if not found["dry_run"]:
        lines.append("Recorded in data/forgotten.csv: commit it.")
    return "\n".join(lines)
