"""What lies in a project: which products are fresh, what was left behind, who is at work.

Read from the small JSON files alone, without torch or pandas: `headwater status` answers at once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import forgotten
from ..artifacts import LINEAGE, read_json, read_lines, sha256_file
from ..s3 import SCHEME
from ._common import CHAIN, PRODUCTS

if TYPE_CHECKING:
    from ..config import Config, Paths

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<old>\.old)?")  # of artifacts.atomic_*
# Sections that hold what a stage records of its configuration; "seed" stands for itself.
SECTIONS = {
    "ingest": ("data",),
    "validate": ("validate", "data"),
    "seed_embed": ("seed_encoder",),
    "curate": ("curate", "data", "seed", "synthesise"),
    "shard": ("shard", "data"),
    "pretrain": ("pretrain", "seed"),
    "embed": ("embed", "seed"),
    "evaluate": ("evaluate", "seed"),
    "promote": ("promote", "deploy", "seed"),
}


@dataclass(frozen=True)
class Standing:
    """One stage: ``fresh``, ``stale`` or ``missing``, and why."""

    stage: str
    state: str
    why: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)


def product(paths: Paths, stage: str) -> Path:
    """The folder a stage writes."""
    folder: Path = getattr(paths, PRODUCTS[stage])
    return folder


def record(folder: Path) -> dict[str, Any] | None:
    """A product's lineage; None without it."""
    file = folder / LINEAGE
    found: dict[str, Any] | None = read_json(file) if file.exists() else None
    return found


# ---- fresh or stale ----------------------------------------------------------------------------


def standings(cfg: Config, paths: Paths) -> list[Standing]:
    """Every stage of the chain, in order; what rests on a stale product is stale."""
    found: dict[str, Standing] = {}
    for stage in CHAIN:
        found[stage] = _standing(cfg, paths, stage, found)
    return list(found.values())


def labelled(cfg: Config, paths: Paths) -> bool:
    """Whether there are classes to evaluate by. validate.min_classes < 2 allows that there be none.

    Before stage ingest that is not known, and False.
    """
    if cfg.validate_.min_classes >= 2:
        return True
    own = record(product(paths, "ingest"))
    return own is not None and int(own["counts"].get("classes", 0)) >= 2


def _standing(cfg: Config, paths: Paths, stage: str, before: dict[str, Standing]) -> Standing:
    own = record(product(paths, stage))
    if own is None:
        return Standing(stage, "missing")
    why = [*_changed_config(cfg, stage, own["config"])]
    by_product = {name: s for s, name in PRODUCTS.items()}
    for name, known in own["inputs"].items():
        if name not in by_product:  # the champion that a decision was made against
            continue
        if before[by_product[name]].state != "fresh":
            why.append(f"{name} is {before[by_product[name]].state}")
        elif known != sha256_file(product(paths, by_product[name]) / LINEAGE):
            why.append(f"{name} is another one now")
    if stage == "ingest":
        why += _changed_files(cfg, paths)
        file = paths.corrections
        if own["inputs"].get("corrections") != (sha256_file(file) if file.exists() else None):
            why.append(f"{file.name} is another one now")
    return Standing(stage, "stale" if why else "fresh", tuple(why), own["counts"])


def _changed_config(cfg: Config, stage: str, recorded: dict[str, Any]) -> Iterator[str]:
    """Options that a product was made with and that differ now."""
    now: dict[str, Any] = {}
    for name in reversed(SECTIONS[stage]):
        section = cfg.section(name)
        now |= {name: section} if name == "synthesise" else section  # recorded as one value
    now["baselines"] = [b for b in cfg.evaluate.baselines if stage != "embed" or b != "seed"]
    for key, value in recorded.items():
        if key in now and now[key] != value:
            yield f"{key} was {value!r}, is {now[key]!r}"


def _changed_files(cfg: Config, paths: Paths) -> list[str]:
    """Local images that came, went or changed their size or time since stage ingest saw them."""
    import pyarrow.parquet as pq

    from .. import sources
    from ..errors import HeadwaterError

    names: set[str] = set()
    for file in ("manifest", "rejects"):
        table = pq.read_table(paths.manifest / f"{file}.parquet", columns=["path"])
        names |= set(table["path"].to_pylist())
    versions = _versions(paths.runs / _cache(cfg))
    seen, changed = set[str](), 0
    for location in cfg.data.sources:
        if location.startswith(SCHEME):
            names = {n for n in names if not n.startswith(location)}
            continue
        try:
            for item in sources.listing(location, paths.root):
                seen.add(item.ref)
                known = versions.get(item.ref, item.version)
                changed += item.reject is None and known != item.version
        except HeadwaterError as error:
            return [str(error)]
    texts = {"new": len(seen - names), "gone": len(names - seen), "changed": changed}
    texts["forgotten"] = _forgotten(paths)
    return [f"{n} images {what}" for what, n in texts.items() if n]


def _forgotten(paths: Paths) -> int:
    """Images of the manifest that were forgotten since."""
    import pyarrow.parquet as pq

    gone = forgotten.read(paths.forgotten)
    if not gone:
        return 0
    table = pq.read_table(paths.manifest / "manifest.parquet", columns=["sha256"])
    return len(gone.intersection(table["sha256"].to_pylist()))


def _cache(cfg: Config) -> str:
    n = cfg.data.channels
    return "ingest-cache.parquet" if n == 3 else f"ingest-cache-{n}.parquet"


def _versions(file: Path) -> dict[str, str]:
    """What stage ingest remembers of each file; nothing where the cache is absent or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["path", "version"])
    except (OSError, pa.ArrowException, KeyError):
        return {}
    return dict(zip(table["path"].to_pylist(), table["version"].to_pylist(), strict=True))


# ---- what was left behind ----------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """A temporary file or folder of an interrupted write; ``only`` where it is the one copy."""

    path: Path
    target: Path
    only: bool
    age: float  # seconds


def leftovers(paths: Paths) -> list[Leftover]:
    """Temporary names of ``artifacts`` where stages write; images that came in are not walked.

    A folder is replaced by two renames. Killed between them, the old version survives only under
    its temporary name: ``only`` says so, and nothing may delete it.
    """
    found = []
    deploy = (paths.predictions, paths.monitor, paths.deploy / "shadow")
    for top in (paths.products, paths.registry, *deploy, paths.runs, paths.reports):
        for here, folders, files in os.walk(top):
            for name in [*folders, *files]:
                if match := TEMPORARY.fullmatch(name):
                    target = Path(here) / match["name"]
                    only = bool(match["old"]) and not target.exists()
                    found.append(Leftover(Path(here) / name, target, only, _age(here, name)))
            folders[:] = [f for f in folders if not f.startswith(".")]
    return found


def _age(folder: str, name: str) -> float:
    path = Path(folder) / name
    try:
        newest = max((p.stat().st_mtime for p in [path, *path.rglob("*")]), default=0.0)
    except OSError:  # it went meanwhile: somebody is at work on it
        return 0.0
    return max(0.0, time.time() - newest)


def workers(paths: Paths) -> list[dict[str, Any]]:
    """Processes of this package at work in the project: pid and stage. Linux only; else none."""
    root, own, found = paths.root.resolve(), os.getpid(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            here = Path(os.readlink(folder / "cwd"))
        except OSError:  # another user's, or over
            continue
        if int(folder.name) != own and here == root and (name := _stage_of(words)):
            found.append({"pid": int(folder.name), "stage": name})
    return sorted(found, key=lambda w: int(w["pid"]))


def _stage_of(words: list[bytes]) -> str:
    """``python -m ssl_core pretrain`` and ``headwater pretrain`` are the stage pretrain."""
    texts = [w.decode(errors="replace") for w in words]
    for one, two in pairwise(texts):
        if one == "ssl_core" or Path(one).name == "headwater":
            name = two.replace("-", "_")
            return name if name in CHAIN or name in ("predict", "monitor", "serve") else ""
    return ""


def trainings(paths: Paths) -> list[dict[str, Any]]:
    """Work folders of pretraining that hold a checkpoint or a log; what is whole is deleted."""
    alive = any(w["stage"] == "pretrain" for w in workers(paths))
    found = []
    for folder in sorted(paths.runs.glob("pretrain/*")):
        log = read_lines(folder / "log.jsonl")
        age = _age(str(folder.parent), folder.name)
        found.append(
            {
                "folder": folder,
                "state": "running" if alive and age < 600 else "interrupted",
                "step": int(log[-1].get("step", len(log) - 1)) + 1 if log else 0,
                "loss": log[-1].get("loss") if log else None,
                "age": age,
                "bytes": size(folder),
            }
        )
    return found


def size(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


# ---- models and days ---------------------------------------------------------------------------


def champion(paths: Paths) -> str | None:
    """Id of the model that serves. `registry.champion` says the same, but imports torch."""
    file = paths.registry / "champion.json"
    return str(read_json(file)["id"]) if file.exists() else None


def verdicts(paths: Paths, last: int = 5) -> list[dict[str, Any]]:
    """The latest days that were judged."""
    files = sorted(paths.monitor.glob("date=*/verdict.json"))[-last:]
    return [{"date": f.parent.name.removeprefix("date="), **read_json(f)} for f in files]
