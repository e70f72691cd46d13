"""The checks of ``headwater doctor`` about machine, places and products."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import LINEAGE, read_json, sha256_file
from ..s3 import SCHEME
from . import _dvc
from ._common import CHAIN, LOGIN, human
from ._dvc import can_write, reach
from ._line import FAIL, OK, WARN, Line
from ._state import champion, leftovers, product, record, size, trainings, workers

if TYPE_CHECKING:
    from ..config import Config, Paths

SPARE = 2 * 2**30  # bytes that a stage may need beside copies of its products
LEAST = 2**28
SETTLED = 600.0  # seconds


def machine(_cfg: Config, _paths: Paths) -> Iterator[Line]:
    """Cores, memory, accelerator."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    level = OK if pages >= 4 * 2**30 else WARN
    repair = "" if level == OK else "lower pretrain.batch_size and embed.batch_size"
    yield Line(level, "machine", f"{cores} cores, {human(pages)} of memory", repair)
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        text = f"{torch.cuda.device_count()} x {about.name}, {human(about.total_memory)}, {bf16}"
        yield Line(OK, "gpu", text)
    else:
        bf16 = "with" if torch.cpu.get_capabilities().get("avx512_bf16") else "without"
        yield Line(OK, "gpu", f"none: training runs on the CPU, {bf16} bf16 instructions")


def disk(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Room for one more version of every product."""
    need = SPARE + (size(paths.products) if paths.products.exists() else 0)
    free = shutil.disk_usage(paths.root).free
    level = OK if free >= need else FAIL if free < LEAST else WARN
    repair = "" if level == OK else "headwater clean; dvc gc -w; or a larger disk"
    yield Line(level, "disk", f"{human(free)} free, about {human(need)} wanted", repair)


def writable(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Every folder that stages write into."""
    places = [paths.products, paths.registry, paths.runs, paths.reports, paths.deploy]
    bad = [p for p in (*places, Path(tempfile.gettempdir())) if not can_write(p)]
    for place in bad:
        yield Line(
            FAIL, "folders", f"{place} cannot be written", f"chmod u+rwx {place}, or remount"
        )
    if not bad:
        yield Line(OK, "folders", "all can be written")


def sources(cfg: Config, paths: Paths) -> Iterator[Line]:
    """Each entry of data.sources is there, or answers."""
    from .. import sources as kinds

    for location in cfg.data.sources:
        shown = LOGIN.sub("***@", location)
        if location.startswith(SCHEME):
            reach(location)
        else:
            next(iter(kinds.listing(location, paths.root)), None)
        there = location.startswith(SCHEME) or (paths.root / location).exists()
        absent = "{" not in location and not there  # of the defaults, which may be absent
        yield Line(OK, "source", f"{shown} {'is not there yet' if absent else 'can be listed'}")


# ---- what lies here ----------------------------------------------------------------------------


def left(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Interrupted writes and trainings."""
    found, busy = leftovers(paths), workers(paths)
    for item in (x for x in found if x.only and not busy):
        text = f"{item.target} was being replaced; its old version is the only one"
        yield Line(FAIL, "leftovers", text, f"mv {item.path} {item.target}")
    rest = [x for x in found if not x.only and x.age > SETTLED]
    if rest:
        sizes = human(sum(size(x.path) for x in rest))
        text = f"{len(rest)} temporary files of interrupted writes, {sizes}"
        yield Line(WARN, "leftovers", text, "headwater clean --yes")
    if not rest and not any(x.only for x in found):
        yield Line(OK, "leftovers", "no interrupted write")
    for t in trainings(paths):
        if t["state"] == "interrupted":
            text = f"training interrupted at step {t['step']} ({t['folder'].name})"
            yield Line(
                WARN, "training", text, "headwater run goes on; headwater clean drops old ones"
            )


def products(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Every file of every product against the checksum in its lineage."""
    bad, files = [], 0
    for stage in CHAIN:
        folder = product(paths, stage)
        own = record(folder)
        if own is None and folder.exists():
            bad.append((folder / LINEAGE, stage))
        for name, known in (own["outputs"] if own else {}).items():
            files += 1
            if not (folder / name).exists() or sha256_file(folder / name) != known:
                bad.append((folder / name, stage))
    for path, stage in bad:
        repair = f"dvc checkout --force {path.parent}, or headwater run {stage}"
        yield Line(FAIL, "products", f"{path} is missing or altered", repair)
    if not bad:
        yield Line(OK, "products", f"{files} files match their checksums" if files else "none yet")
    report = paths.validation / "report.json"
    if report.exists() and not read_json(report)["success"]:
        repair = "mend the data, or section validate of params.yaml; then headwater run"
        yield Line(WARN, "gate", f"validation failed ({report})", repair)


def shards(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Shards against index.json."""
    if (paths.shards / "index.json").exists():
        from .. import store

        yield Line(OK, "shards", f"{store.verify(paths.shards)} match index.json")


def registry(_cfg: Config, paths: Paths) -> Iterator[Line]:
    """Every model against its checksums, and the champion against the log."""
    from .. import registry as models

    folder, now = paths.registry, champion(paths)
    names = sorted(p.name for p in folder.glob("models/*") if models.ID.fullmatch(p.name))
    for name in names:
        models.verify(folder, name)
    if now is None:
        yield Line(OK, "registry", f"{len(names)} models, no champion yet")
        return
    models.path(folder, now)
    served = models.lineage(folder)
    if served and served[-1] != now:
        text = f"the log says {served[-1]} serves, champion.json says {now}"
        yield Line(WARN, "registry", text, "the next promotion or rollback settles it")
        return
    yield Line(OK, "registry", f"{len(names)} models whole, champion {now}")


CHECKS: dict[str, Callable[[Config, Paths], Iterator[Line]]] = {
    "machine": machine,
    "disk": disk,
    "folders": writable,
    "source": sources,
    "dvc": _dvc.check,
    "leftovers": left,
    "products": products,
    "shards": shards,
    "registry": registry,
}
