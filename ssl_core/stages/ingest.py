"""Every source becomes one manifest; whatever is not taken is listed with a reason."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from .. import engine, forgotten, images, sources
from ..artifacts import atomic_dir, atomic_file, write_lineage
from ..config import Config, Data, Paths
from ..errors import HeadwaterError
from ..images import Facts, Reject
from ..progress import Reporter
from ..sources import Item
from . import _corrections

COLUMNS = {
    "path": "str",
    "sha256": "str",
    "phash": "str",
    "width": "int64",
    "height": "int64",
    "mode": "str",
    "format": "str",
    "bytes": "int64",
    "label": "str",
    "group": "str",
    "source": "str",
    "captured_at": "str",
}
READS = ("sources", "min_side", "max_pixels", "channels")  # of section data
REJECTS = {"path": "str", "reason": "str", "detail": "str"}
CACHE = {"path": "str", "version": "str", "rules": "int64"} | {
    name: kind for name, kind in COLUMNS.items() if name in Facts.__dataclass_fields__
}
RULES = 1  # raise it when examine() would describe a file differently
SETTLED = 2.0  # seconds: a file as young as this may change again within one mtime tick
CHUNK = 128  # images that go to Ray together
DETAIL = 300  # characters kept of a reject's detail
Known = dict[tuple[str, str], Facts]


@dataclass(frozen=True)
class Found:
    """What became of one item: facts, or a reject."""

    item: Item
    facts: Facts | None = None
    reject: Reject | None = None


# ---- the cache ---------------------------------------------------------------------------------


def read_cache(file: Path) -> Known:
    """Facts of earlier runs by (ref, version); nothing where the cache is absent or damaged."""
    try:
        frame = pd.read_parquet(file)[list(CACHE)]
        rows = frame[frame["rules"] == RULES].drop(columns="rules").to_dict("records")
        facts: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in rows]
        return {(r.pop("path"), r.pop("version")): Facts(**r) for r in facts}
    except Exception:  # a cache may only save time; whatever is wrong with it is no reason to stop
        return {}


def _settled(version: str, now: float) -> bool:
    """False for a local file that was written just now: its mtime may not show the next write."""
    mtime = version.rpartition(":")[2] if '"' not in version else ""  # S3 has ETags, in quotes
    return bool(version) and (not mtime or now - int(mtime) / 1e9 > SETTLED)


def cache(cfg: Config, paths: Paths) -> Path:
    """What is known of files depends on the channels that are asked for."""
    n = cfg.data.channels
    return paths.runs / ("ingest-cache.parquet" if n == 3 else f"ingest-cache-{n}.parquet")


def write_cache(file: Path, found: list[Found], now: float) -> None:
    """Keep the facts of files whose version is known and settled."""
    rows = [
        {"path": f.item.ref, "version": f.item.version, "rules": RULES} | asdict(f.facts)
        for f in found
        if f.facts and _settled(f.item.version, now)
    ]
    with atomic_file(file) as temp:
        _frame(rows, CACHE).to_parquet(temp, engine="pyarrow", index=False)


# ---- one image ---------------------------------------------------------------------------------


Refused = tuple[str, str]  # reason and detail of a reject


def examine(root: Path, data: Data, ref: str) -> Facts | Refused:
    """Read and judge one image; runs wherever the work is done.

    Raises:
        HeadwaterError: its storage does not answer.
    """
    try:
        raw = images.read_bytes(ref, root)
        return images.examine(raw, data.min_side, data.max_pixels, data.channels)
    except Reject as reject:
        return reject.reason, reject.detail


def settle(item: Item, facts: Facts | Refused, data: Data) -> Found:
    """What became of an item; the limits may have changed since its facts were found."""
    if not isinstance(facts, Facts):
        return Found(item, reject=Reject(*facts))
    try:
        images.require_sides(facts.width, facts.height, data.min_side, data.max_pixels)
        return Found(item, facts)
    except Reject as reject:
        return Found(item, reject=reject)


def day(value: str | None) -> str | None:
    """ISO 8601 of a date or a time; None if it is neither."""
    for parse in (date.fromisoformat, datetime.fromisoformat):
        try:
            return parse(value or "").isoformat()
        except ValueError:
            continue
    return None


def _row(found: Found) -> dict[str, Any]:
    """A line of the manifest. An image of no known group is its own, together with its copies."""
    item, facts = found.item, found.facts
    assert facts is not None
    return (
        {"path": item.ref}
        | asdict(facts)
        | {
            "label": item.label,
            "group": item.group or facts.sha256,
            "source": item.source,
            "captured_at": day(item.captured_at),
        }
    )


def refuse(found: Found, gone: frozenset[str]) -> Found:
    """What was forgotten is not taken again, whatever it is called now."""
    if found.facts is None or found.facts.sha256 not in gone:
        return found
    return Found(found.item, reject=Reject(forgotten.REASON, "by headwater forget"))


# ---- the whole ---------------------------------------------------------------------------------


def gather(locations: tuple[str, ...], root: Path) -> list[Item]:
    """Items of all sources; a ref that was listed before is refused the second time.

    Raises:
        HeadwaterError: a source is unknown or cannot be read.
    """
    seen: set[str] = set()
    items = []
    for location in locations:
        for item in sources.listing(location, root):
            if item.reject is None and item.ref in seen:
                item = Item(item.ref, reject=Reject("duplicate-key", f"again in '{location}'"))
            elif item.reject is None:
                seen.add(item.ref)
            items.append(item)
    return items


def examine_all(
    items: list[Item], root: Path, cfg: Config, known: Known, report: Reporter
) -> Iterator[Found]:
    """What became of all items, in order; only those that nothing is known of are read."""
    old = [known.get((i.ref, i.version)) if i.version else None for i in items]
    new = [i.ref for i, facts in zip(items, old, strict=True) if not (i.reject or facts)]
    work = partial(examine, root.absolute(), cfg.data)
    ahead = 32 * (os.cpu_count() or 1)
    looked = engine.each(work, new, cfg.scale, ahead, CHUNK)
    with report.bar(len(items), "img") as advance:
        for item, facts in zip(items, old, strict=True):
            if item.reject:
                yield Found(item, reject=item.reject)
            else:
                yield settle(item, facts or next(looked), cfg.data)
            advance()
    looked.close()
    report.log(f"{len(new)} read", read=len(new))


def _frame(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def tables(found: list[Found]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Manifest and rejects, each sorted so that the order of files does not matter."""
    rows = [_row(f) for f in found if f.facts]
    refused = [
        {"path": f.item.ref, "reason": f.reject.reason, "detail": f.reject.detail[:DETAIL]}
        for f in found
        if f.reject
    ]
    manifest = _frame(rows, COLUMNS).sort_values("path", ignore_index=True)
    rejects = _frame(refused, REJECTS).sort_values(list(REJECTS), ignore_index=True)
    return manifest, rejects


def count(found: list[Found], manifest: pd.DataFrame, rejects: pd.DataFrame) -> dict[str, Any]:
    """What came in, what was kept and why not the rest."""
    dated = [f.item.captured_at for f in found if f.facts and f.item.captured_at]
    return {
        "found": len(found),
        "kept": len(manifest),
        "rejected": len(rejects),
        "by_reason": dict(sorted(Counter(rejects["reason"].tolist()).items())),
        "unlabelled": int(manifest["label"].isna().sum()),
        "classes": int(manifest["label"].nunique()),
        "groups": int(manifest["group"].nunique()),
        "by_source": dict(sorted(Counter(manifest["source"].tolist()).items())),
        "bytes": int(manifest["bytes"].sum()),
        "bad_captured_at": sum(day(text) is None for text in dated),
        # Stands for the raw images, which are no product with a lineage file of their own.
        "content": hashlib.sha256(manifest.to_csv(index=False).encode()).hexdigest(),
    }


def require_some(cfg: Config, counts: dict[str, Any]) -> None:
    """Refuse to go on without any image."""
    if not counts["kept"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["by_reason"].items())
        rule = f"hold no usable image ({reasons or 'they are empty'})"
        fix = "add images, or correct data.sources in params.yaml"
        raise HeadwaterError(f"data.sources = {list(cfg.data.sources)}", rule, fix)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write manifest/: manifest.parquet, with corrected labels, and rejects.parquet.

    Raises:
        HeadwaterError: a source is unknown, absent or does not answer, there is no image, or
            data/corrections.csv or data/forgotten.csv is damaged.
    """
    file, began = cache(cfg, paths), time.time()
    with Reporter("ingest") as report, atomic_dir(paths.manifest) as out:
        items = gather(cfg.data.sources, paths.root)
        known, gone = read_cache(file), forgotten.read(paths.forgotten)
        looked = examine_all(items, paths.root, cfg, known, report)
        found = [refuse(f, gone) for f in looked]
        manifest, rejects = tables(found)
        manifest, corrected = _corrections.apply(manifest, _corrections.read(paths.corrections))
        counts = count(found, manifest, rejects) | corrected
        require_some(cfg, counts)
        manifest.to_parquet(out / "manifest.parquet", engine="pyarrow", index=False)
        rejects.to_parquet(out / "rejects.parquet", engine="pyarrow", index=False)
        config = {k: cfg.section("data")[k] for k in READS}
        inputs = {"corrections": paths.corrections} if paths.corrections.exists() else {}
        write_lineage(out, "ingest", config, inputs, counts)
        write_cache(file, found, began)
        reused = sum((f.item.ref, f.item.version) in known for f in found if f.facts)
        text = ", ".join(f"{n} {reason}" for reason, n in counts["by_reason"].items())
        report.log(
            f"{counts['kept']} of {counts['found']} kept, {reused} seen before; "
            f"rejected: {text or 'none'}",
            reused=reused,
        )
    return counts | {"reused": reused}
