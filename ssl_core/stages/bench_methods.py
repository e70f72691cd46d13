"""Every method on the same sets, backbone and compute, beside its baselines.

A method with cheap steps takes more of them (``_trained.py``). A finished training is kept in
``runs/bench``: an interrupted or repeated call goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import embed, job, models, plugins
from ..artifacts import read_json, sha256_file, sha256_json, write_bytes, write_json
from ..config import Arm, Bench, Config, Paths
from ..errors import HeadwaterError
from ..evaluate import knn, linear
from ..progress import Reporter
from ..report import bench as pictures
from . import _trained
from ._bench_sets import prepared
from ._bench_summary import MEASURES, summary
from .seeds import Images, images_of

BASELINES = ("random", "pixels")
KEPT = {"backbone", "backbone_args", "image_size", "teraflops"}  # part of an encoder's key
RULES = 1  # raise it when an encoder would be measured differently


@dataclass(frozen=True)
class Case:
    """One training: a method (or a baseline) on one set with one seed."""

    set_: str
    name: str
    seed: int


def training(cfg: Config, method: str, seed: int) -> Config:
    """The configuration of one training, but for its length; ``method`` may be a variant's name.

    Raises:
        HeadwaterError: a method or option that does not exist.
    """
    extra = {arm.name: arm for arm in cfg.bench.extra}
    return _trained.training(cfg, extra.get(method, Arm(method=method)), seed)


def _encoder(cfg: Config, case: Case, folder: Path, work: Path, report: Reporter) -> Any:
    """The trained (or for "random" untrained) encoder, and what its training was.

    Encoders stay in ``work``: another measure needs no other training.
    """
    if case.name == "random":
        return _trained.untrained(cfg, case.seed), {}
    made = _trained.fit(training(cfg, case.name, case.seed), folder, work, report)
    return made, _trained.about(work)


def _measure(cfg: Config, case: Case, images: Images, encoder: Any) -> dict[str, float]:
    if case.name == "pixels":
        return images.measure(embed.pixels(images.reader))
    colour = models.normalisation(images.reader.channels)
    train_set, test_set = images.sets(embed.compute(encoder, images.reader, *colour))
    head = linear.fit(train_set)
    named = {
        "knn": knn.predict(train_set, test_set.features),
        "linear": linear.named(head, train_set, test_set.features),
    }
    if cfg.bench.fine_tune_steps:
        named["fine_tune"] = _trained.fine_tuned(
            cfg.bench.fine_tune_steps, case.seed, images, encoder, head
        )
    return {k: float((v == test_set.labels).mean()) for k, v in named.items()}


def _key(cfg: Config, case: Case, folder: Path) -> str:
    """Name and digest of all that an encoder depends on."""
    kept = cfg.bench.model_dump(mode="json", include=KEPT)
    what = [sha256_file(folder / "index.json"), case.name, case.seed, kept]
    if case.name not in BASELINES:
        own = training(cfg, case.name, case.seed)
        options = job.options(own.pretrain).model_dump(mode="json")
        what += [own.section("pretrain"), options]
    return f"{case.name}-{case.seed}-{sha256_json(what)[:12]}"


def result(
    cfg: Config, paths: Paths, case: Case, folder: Path, images: Images, report: Reporter
) -> dict[str, Any]:
    """One line of the result, from an earlier call where there is one.

    Training that the guard stopped is a result as well: ``failed`` says why.
    """
    work = paths.runs / "bench" / "encoders" / case.set_ / _key(cfg, case, folder)
    measured = sha256_json([RULES, cfg.bench.fine_tune_steps])[:6]
    file = paths.runs / "bench" / "results" / case.set_ / f"{work.name}-{measured}.json"
    if file.exists():
        found: dict[str, Any] = read_json(file)
        return found
    row: dict[str, Any] = {"set": case.set_, "name": case.name, "seed": case.seed}
    encoder = None
    try:
        if case.name != "pixels":
            encoder, about = _encoder(cfg, case, folder, work, report)
            row |= about
        row |= _measure(cfg, case, images, encoder)
    except HeadwaterError as error:
        row["failed"] = str(error)
    write_json(file, row)
    return row


def quick(bench: Bench) -> Bench:
    """One seed, a tenth of the compute, no fine-tuning."""
    changes = {"seeds": 1, "teraflops": bench.teraflops / 10, "fine_tune_steps": 0}
    return bench.model_copy(update=changes)


def _said(row: dict[str, Any]) -> str:
    return ", ".join(f"{m} {row[m]:.3f}" for m in MEASURES if m in row)


def run(cfg: Config, paths: Paths, fast: bool = False) -> dict[str, Any]:
    """Write reports/bench-methods.json, .md and .png.

    Raises:
        HeadwaterError: a set that is not there, an unknown method.
    """
    if fast:
        cfg = cfg.model_copy(update={"bench": quick(cfg.bench)})
    chosen = cfg.bench.methods or (*plugins.names("methods"), *(a.name for a in cfg.bench.extra))
    for name in chosen:
        training(cfg, name, 0)  # all is checked before the first hour
    rows: list[dict[str, Any]] = []
    with Reporter("bench-methods") as report:
        for set_, where in cfg.bench.sets.items():
            folder = prepared(cfg, paths, set_, where, report)
            images = images_of(folder, cfg.bench.image_size)
            for seed in range(cfg.bench.seeds):
                for name in (*(BASELINES if seed == 0 else BASELINES[:1]), *chosen):  # pixels once
                    row = result(cfg, paths, Case(set_, name, seed), folder, images, report)
                    rows.append(row)
                    said = row.get("failed") or _said(row)
                    report.log(f"{set_} {name} seed {seed}: {said}")
    table = summary(rows)
    about = cfg.bench.model_dump(mode="json")
    write_json(paths.reports / "bench-methods.json", {"bench": about, "rows": rows, "table": table})
    write_bytes(paths.reports / "bench-methods.md", pictures.markdown(table).encode())
    write_bytes(paths.reports / "bench-methods.png", pictures.picture(table))
    return {
        f"{r['set']} {r['name']}": json.dumps(
            {m: round(r[m]["mean"], 3) for m in MEASURES if m in r}
        )
        for r in table
    }
