"""What ``headwater forget`` removes: bytes and rows that are ours, one whole step after another.

Every step replaces a file or a product whole and finds nothing to do the second time, so that a run
that was killed anywhere is finished by running it again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import forgotten, shards, store, upload
from ..artifacts import (
    LINEAGE,
    atomic_dir,
    atomic_file,
    link,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)
from ..config import Paths
from ..types import Labels

MARK = "forgotten"  # in a lineage: how many images went, and what its hash was before
LAST = ("seed_embeddings", "manifest")  # the manifest says what the rows of the other are
LINKED = ("manifest", "validation", "seed_embeddings", "curated", "shards")
TRAINED = ("pretrain", "embeddings")  # fresh as before where the encoder never saw the image
Keep = dict[str, Labels]  # file -> positions of the rows that stay


@dataclass(frozen=True)
class Step:
    """One removal: what, for people, and how."""

    what: str
    act: Callable[[], object]


@dataclass(frozen=True)
class Target:
    """What is to go: the image and what was composed of it, by content; and where it lay."""

    sha: str
    keys: frozenset[str]
    refs: frozenset[str]


def steps(paths: Paths, target: Target) -> list[Step]:
    """All that there is to remove, in order; linking lineages comes last."""
    names = [p.name for p in sorted(paths.products.glob("[!.]*")) if p.is_dir()]
    first = [n for n in names if n not in (*LAST, "pretrain")]
    found = [*_collected(paths, target), *_caches(paths, target), *_pages(paths, target)]
    for name in (*first, *LAST):
        found += _product(paths, paths.products / name, target)
    return [*found, Step("lineages linked again", lambda: relink(paths))]


# ---- collected images --------------------------------------------------------------------------


def _collected(paths: Paths, target: Target) -> Iterator[Step]:
    rows = _read(paths.manifest / "manifest.parquet", ["sha256", "bytes"])
    sizes = set(rows.loc[rows["sha256"] == target.sha, "bytes"]) if len(rows) else set()
    for file in sorted(p for p in paths.collected.rglob("*") if p.is_file()):
        if file.name.startswith(".") or (sizes and file.stat().st_size not in sizes):
            continue
        if sha256_file(file) == target.sha:
            where = file.relative_to(paths.root).as_posix()
            yield Step(f"{where}: deleted", partial(_delete, file, paths.collected))


def _delete(file: Path, top: Path) -> None:
    """Its line in each metadata.csv above it goes first: a line without a file is a reject."""
    for folder in file.parents:
        _unlist(folder / "metadata.csv", file.relative_to(folder).as_posix())
        if folder == top:
            break
    file.unlink()


def _unlist(table: Path, name: str) -> None:
    if not table.exists():
        return
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    rest = frame[frame["path"] != name]
    if len(rest) < len(frame):
        write_bytes(table, rest.to_csv(index=False, lineterminator="\n").encode())


# ---- products ----------------------------------------------------------------------------------


def _read(file: Path, columns: list[str] | None = None) -> pd.DataFrame:
    return pd.read_parquet(file, columns=columns) if file.exists() else pd.DataFrame()


def _table(file: Path) -> pd.DataFrame:
    if file.suffix == ".csv":
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    return pd.read_parquet(file)


def _stay(frame: pd.DataFrame, target: Target) -> Labels:
    """Positions of the rows that are not about the image."""
    gone = np.zeros(len(frame), dtype=np.bool_)
    by_content = [c for c in ("sha256", "key") if c in frame]
    for column in by_content:
        gone |= frame[column].isin(target.keys).to_numpy(np.bool_)
    if not by_content and "path" in frame:
        gone |= frame["path"].isin(target.refs).to_numpy(np.bool_)
    found: Labels = np.flatnonzero(~gone)
    return found


def _tables(folder: Path, target: Target) -> Keep:
    """Tables of a product that hold rows about the image."""
    found: Keep = {}
    for file in sorted([*folder.rglob("*.parquet"), *folder.rglob("*.csv")]):
        if file.name == "rejects.parquet":
            continue
        frame = _table(file)
        stay = _stay(frame, target)
        if len(stay) < len(frame):
            found[file.relative_to(folder).as_posix()] = stay
    return found


def _arrays(folder: Path, length: int, stay: Labels) -> Keep:
    """Arrays whose rows are those of a table of ``length`` rows."""
    files = sorted(folder.glob("*.npy"))
    same = [f for f in files if len(np.load(f, mmap_mode="r", allow_pickle=False)) == length]
    return {f.name: stay for f in same}


def _product(paths: Paths, folder: Path, target: Target) -> list[Step]:
    if not (folder / LINEAGE).exists():
        return []
    if folder == paths.shards:
        return _shards(paths, target)
    keep = _tables(folder, target)
    if folder == paths.seed_embeddings:  # rows as in the manifest, which is cut after it
        rows = _read(paths.manifest / "manifest.parquet", ["sha256"])
        stay = _stay(rows, target)
        keep |= _arrays(folder, len(rows), stay) if len(stay) < len(rows) else {}
    elif "index.parquet" in keep:
        length = len(_table(folder / "index.parquet"))
        keep |= _arrays(folder, length, keep["index.parquet"])
    if not keep:
        return []
    where = folder.relative_to(paths.root).as_posix()
    return [Step(f"{where}: rows of {', '.join(keep)}", lambda: _cut(paths, folder, target, keep))]


def _cut(paths: Paths, folder: Path, target: Target, keep: Keep) -> None:
    with atomic_dir(folder) as out:
        for name, stay in keep.items():
            _write_rows(folder / name, out / name, stay)
        changed = set(keep)
        if folder == paths.manifest:
            _reject(folder, out, target)
            changed.add("rejects.parquet")
        if "synthetic.parquet" in keep:
            kept = set(_read(out / "synthetic.parquet")["sha256"])
            _copy_tar(folder / "synthetic.tar", out / "synthetic.tar", kept)
            changed.add("synthetic.tar")
        _finish(folder, out, changed)


def _write_rows(source: Path, to: Path, stay: Labels) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".npy":
        np.save(to, np.load(source, allow_pickle=False)[stay])
        return
    rest = _table(source).iloc[stay].reset_index(drop=True)
    if source.suffix == ".csv":
        rest.to_csv(to, index=False, lineterminator="\n")
    else:
        rest.to_parquet(to, engine="pyarrow", index=False)


def _reject(folder: Path, out: Path, target: Target) -> None:
    """As the next ingest will list it: where the user's own file still lies, with its reason."""
    old = pd.read_parquet(folder / "rejects.parquet")
    own = [r for r in sorted(target.refs) if not r.startswith("data/collected/")]
    rows = [(ref, forgotten.REASON, "by headwater forget") for ref in own]
    new = pd.DataFrame(rows, columns=list(old.columns)).astype(old.dtypes.to_dict())
    frame = pd.concat([old, new]).sort_values(list(old.columns), ignore_index=True)
    frame.to_parquet(out / "rejects.parquet", engine="pyarrow", index=False)


def _copy_tar(source: Path, to: Path, names: set[str]) -> None:
    import tarfile

    with tarfile.open(source) as tar, tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as out:
        for member in tar:
            if member.name.partition(".")[0] in names:
                out.addfile(member, tar.extractfile(member))


def _finish(folder: Path, out: Path, changed: set[str]) -> None:
    """Link what did not change, and say in the lineage that images went."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        page = file.suffix == ".html"  # may hold a small copy of the image
        if not page and name != LINEAGE and name not in changed and not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            link(file, out / name)
    record = read_json(folder / LINEAGE)
    known = record["outputs"]
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.name != LINEAGE)
    names = [p.relative_to(out).as_posix() for p in files]
    record["outputs"] = {
        n: known[n] if n in known and n not in changed else sha256_file(out / n) for n in names
    }
    _note(record, sha256_file(folder / LINEAGE), 1)
    write_json(out / LINEAGE, record)


def _note(record: dict[str, Any], before: str, images: int) -> None:
    old = record.get(MARK, {"images": 0, "before": []})
    record[MARK] = {"images": old["images"] + images, "before": [*old["before"], before]}


# ---- shards ------------------------------------------------------------------------------------


def affected(paths: Paths, target: Target) -> list[str]:
    """Names of the shards that hold it."""
    index = _read(paths.shards / store.INDEX, ["key", "shard"])
    return sorted(index.loc[index["key"].isin(target.keys), "shard"].unique()) if len(index) else []


def _shards(paths: Paths, target: Target) -> list[Step]:
    hit = affected(paths, target)
    if not hit:
        return []
    where = paths.shards.relative_to(paths.root).as_posix()
    said = f"{where}: {', '.join(hit)} written again, the others as they are"
    return [Step(said, lambda: _cut_shards(paths, target))]


def _cut_shards(paths: Paths, target: Target) -> None:
    folder, place = paths.shards, paths.shards / store.PLACE
    with tempfile.TemporaryDirectory(dir=_made(paths.runs)) as name, atomic_dir(folder) as out:
        source = _fetched(folder, Path(name)) if place.exists() else folder
        hit = shards.without(source, out, target.keys)
        changed = {*hit, store.INDEX, store.ABOUT}
        if place.exists():
            upload.move(out, read_json(place)["url"].rpartition("/")[0])
            changed.add(store.PLACE)
        _finish(folder, out, changed)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetched(folder: Path, into: Path) -> Path:
    """Shards that lie in S3, in a local folder."""
    remote = store.at(folder)
    for name in (store.INDEX, store.ABOUT):
        shutil.copyfile(folder / name, into / name)
    for name in remote.about["shards"]:
        with (
            remote.open(name) as handle,
            open(handle, "rb", closefd=False) as stream,
            (into / name).open("wb") as out,
        ):
            shutil.copyfileobj(stream, out)
    return into


# ---- lineages, caches, pages -------------------------------------------------------------------


def relink(paths: Paths) -> None:
    """What rested on a product before rests on it now, down to where an encoder saw the image."""
    seen = _read(paths.pretrain / "seen.parquet")
    gone = forgotten.read(paths.forgotten)
    unseen = len(seen) > 0 and not seen["sha256"].isin(gone).any()
    for name in (*LINKED, *(TRAINED if unseen else ())):
        file = paths.products / name / LINEAGE
        if not file.exists():
            continue
        record, before, changed = read_json(file), sha256_file(file), False
        for other, known in record["inputs"].items():
            upstream = paths.products / other / LINEAGE
            if upstream.exists() and known in read_json(upstream).get(MARK, {}).get("before", ()):
                record["inputs"][other], changed = sha256_file(upstream), True
        if changed:
            _note(record, before, 0)
            write_json(file, record)


def _caches(paths: Paths, target: Target) -> Iterator[Step]:
    for file in sorted(paths.runs.glob("*.parquet")):
        frame = pd.read_parquet(file)
        stay = _stay(frame, target)
        if len(stay) < len(frame):
            yield Step(f"{file.name}: rows", partial(_cut_file, file, stay))
    for file in sorted(paths.runs.glob("seed-features-*.npz")):
        with np.load(file, allow_pickle=False) as stored:
            held = bool(np.isin(stored["sha256"], list(target.keys)).any())
        if held:
            yield Step(f"{file.name}: deleted, it only saves time", file.unlink)
    for index in sorted(paths.runs.glob("bench/*/shards/index.parquet")):
        if _read(index, ["key"])["key"].isin(target.keys).any():
            folder = index.parent.parent
            where = folder.relative_to(paths.root).as_posix()
            yield Step(f"{where}: deleted, it is made again", partial(shutil.rmtree, folder))
    if affected(paths, target):
        for file in sorted(paths.runs.glob("seeds/*.npy")):
            yield Step(f"seeds/{file.name}: deleted, it only saves time", file.unlink)


def _cut_file(file: Path, stay: Labels) -> None:
    rest = pd.read_parquet(file).iloc[stay].reset_index(drop=True)
    with atomic_file(file) as temp:
        rest.to_parquet(temp, engine="pyarrow", index=False)


def _pages(paths: Paths, target: Target) -> Iterator[Step]:
    """Pages hold small copies of images; of which ones cannot be told."""
    known = _read(paths.manifest / "manifest.parquet", ["sha256"])
    if not len(known) or not known["sha256"].isin(target.keys).any():
        return
    tables = [f for f in sorted(paths.reports.rglob("*.*")) if f.suffix in (".csv", ".parquet")]
    named = [f for f in tables if len(_stay(_table(f), target)) < len(_table(f))]
    for file in sorted([*paths.reports.rglob("*.html"), *named]):
        where = file.relative_to(paths.root).as_posix()
        yield Step(f"{where}: deleted, it is made again", file.unlink)
