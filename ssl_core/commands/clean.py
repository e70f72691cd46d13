"""``headwater clean``: what may be deleted safely, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..artifacts import read_lines
from ..errors import HeadwaterError
from ._common import DEFAULT, Json, Params, ago, emit, human, settings, table
from ._state import champion, leftovers, size, trainings, workers

if TYPE_CHECKING:
    from ..config import Config, Paths

SETTLED = 600.0  # seconds without a change after which a temporary name is nobody's work
DAY = 86400.0


@dataclass(frozen=True)
class Item:
    """One file or folder that may go."""

    path: Path | str  # a string: an address in a bucket
    kind: str
    why: str
    bytes: int
    age: float


def command(
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it only a list")] = False,
    days: Annotated[float, typer.Option(min=0, help="caches and runs unused for so long")] = 7.0,
    models: Annotated[
        float | None, typer.Option(min=0, help="also models retired for so many days")
    ] = None,
    keep_models: Annotated[int, typer.Option(min=2, help="champions a rollback can reach")] = 3,
    shards: Annotated[
        float | None,
        typer.Option(min=0, help="also shards in shard.place, unused and so many days old"),
    ] = None,
    params: Params = DEFAULT,
    as_json: Json = False,
) -> None:
    """List what may go, with sizes: temporary files, old runs, caches and reports.

    Never listed: images, products, logs, the champion, and the champions before it that
    `headwater rollback` may need. Shards in a bucket are listed if no product here, model in the
    registry or git revision refers to them; other clones of the project do not count, so give
    them days enough. Examples:

        headwater clean

        headwater clean --shards 90

        headwater clean --days 30 --models 90 --yes
    """
    from ..config import Paths

    paths = Paths()
    cfg = settings(params)
    busy = workers(paths)
    if yes and busy:
        names = ", ".join(f"{w['stage']} (pid {w['pid']})" for w in busy)
        raise HeadwaterError(names, "is at work in this project", "wait for it, then clean")
    items = [*find(cfg, paths, days)]
    items += [] if models is None else retired(paths, models, keep_models)
    items += [] if shards is None else unused(cfg, paths, shards)
    if yes:
        for item in items:
            delete(item.path)
    if as_json:
        rows = [{**vars(i), "path": str(i.path)} for i in items]
        emit({"deleted": yes, "items": rows, "bytes": sum(i.bytes for i in items)})
    else:
        typer.echo(text(items, yes))


# ---- what --------------------------------------------------------------------------------------


def find(cfg: Config, paths: Paths, days: float) -> Iterator[Item]:
    """Temporary names, runs, caches and copies of the report."""
    for left in leftovers(paths):
        if not left.only and left.age > SETTLED:
            why = "an interrupted write; the whole one is in its place, or was never made"
            yield Item(left.path, "temporary", why, size(left.path), left.age)
    yield from _runs(cfg, paths, days)
    yield from _caches(paths, days)
    for file in sorted(paths.reports.glob("report-*.html")):
        if (age := _age(file)) > days * DAY:
            yield Item(file, "report", "a copy of an older report", size(file), age)


def _runs(cfg: Config, paths: Paths, days: float) -> Iterator[Item]:
    """Trainings that the present configuration would not continue."""
    found = trainings(paths)
    if not found:
        return
    current = _current(cfg, paths)
    for t in found:
        if t["folder"] != current and t["state"] != "running" and t["age"] > days * DAY:
            why = f"of another configuration or other data, stopped at step {t['step']}"
            yield Item(t["folder"], "run", why, t["bytes"], t["age"])


def _current(cfg: Config, paths: Paths) -> Path | None:
    """The work folder that `headwater pretrain` would use now."""
    if not (paths.shards / "lineage.json").exists():
        return None
    from ..stages import pretrain

    return pretrain.work_folder(cfg, paths)


def _caches(paths: Paths, days: float) -> Iterator[Item]:
    """What only saves time, where it was not used for long."""
    names = ("ingest-cache*.parquet", "image-properties-*.parquet", "seed-features-*.npz")
    files = [f for name in names for f in paths.runs.glob(name)]
    folders = [p for p in paths.runs.glob("bench/*") if p.is_dir()]
    for path in sorted([*files, *folders]):
        if (age := _age(path)) > days * DAY:
            yield Item(path, "cache", "only saves time; it is made again", size(path), age)


def retired(paths: Paths, days: float, keep: int) -> list[Item]:
    """Models that neither serve, nor wait to, nor are among the last champions.

    Their age counts from the last line about them in the registry's log.
    """
    from .. import registry

    # The pointer is right in a crash between log and pointer too: both it and the log are kept.
    safe = {champion(paths), *registry.lineage(paths.registry)[-keep:]}
    waiting = ("candidate", "approved", "shadow", "champion")
    states = registry.states(paths.registry)
    safe |= {name for name, state in states.items() if state in waiting}
    last = _last_told(paths)
    found = []
    for folder in sorted(paths.registry.glob("models/*")):
        if folder.name in safe or not registry.ID.fullmatch(folder.name):
            continue
        age = time.time() - last.get(folder.name, folder.stat().st_mtime)
        if age > days * DAY:
            why = f"{states.get(folder.name, 'never promoted')}; then: dvc commit -f promote"
            found.append(Item(folder, "model", why, size(folder), age))
    return found


def unused(cfg: Config, paths: Paths, days: float) -> list[Item]:
    """Shards below ``shard.place`` that nothing refers to.

    Raises:
        HeadwaterError: there is no shard.place, it does not answer, or what refers to shards
            cannot be told.
    """
    from .. import upload
    from ._buckets import referred

    if not cfg.shard.place:
        raise HeadwaterError("shard.place", "is not set", "there are no shards in a bucket")
    safe = {digest[: upload.DIGITS] for digest in referred(paths)}
    why = "no product, model or git revision here refers to it"
    return [
        Item(lot.url, "shards", why, lot.bytes, lot.age)
        for lot in upload.lots(cfg.shard.place)
        if lot.name not in safe and lot.age > days * DAY
    ]


def _last_told(paths: Paths) -> dict[str, float]:
    """When the registry's log last named each model."""
    from datetime import datetime

    found: dict[str, float] = {}
    for entry in read_lines(paths.registry / "log.jsonl"):
        told = datetime.fromisoformat(entry["time"]).timestamp() if "time" in entry else 0.0
        for name in (entry.get("id"), entry.get("previous")):
            if name:
                found[name] = max(told, found.get(name, 0.0))
    return found


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


# ---- doing it ----------------------------------------------------------------------------------


def delete(path: Path | str) -> None:
    """A file, or a folder that is first renamed: half deleted it is never taken for whole."""
    if isinstance(path, str):
        from .. import upload

        upload.remove(path)
    elif path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".{path.name.lstrip('.')}.deleted0")  # a temporary name, as _state's
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def text(items: list[Item], done: bool) -> str:
    """The list, and how to go on."""
    if not items:
        return "Nothing to delete."
    rows = [(human(i.bytes), i.kind, i.path, ago(i.age), i.why) for i in items]
    total = human(sum(i.bytes for i in items))
    end = f"Deleted: {total}." if done else f"{total} in all. Delete them: headwater clean --yes"
    return f"{table(rows)}\n{end}"
