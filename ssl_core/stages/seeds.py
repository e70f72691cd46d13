"""Is the gain real? Train methods over several seeds and hold them against the baselines."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from .. import embed, job, models, plugins
from ..artifacts import LINEAGE, read_json, sha256_file, sha256_json, write_json
from ..config import Arm, Config, Paths, Pretrain
from ..errors import HeadwaterError
from ..progress import Reporter
from ..reader import ShardReader
from ..shards import synthetic
from ..types import Array, Embeddings
from . import evaluate, pretrain

MEASURES = ("knn", "linear")


@dataclass(frozen=True)
class Images:
    """The images that every arm is measured on, decoded once."""

    reader: ShardReader
    rows: Embeddings  # without features
    split: NDArray[np.str_]

    def known(self, split: str) -> NDArray[np.int64]:
        """The labelled rows of a split, real images only."""
        real = ~synthetic(self.reader.frame["source"])
        return np.flatnonzero((self.rows.labels >= 0) & (self.split == split) & real)

    def sets(self, features: Array) -> tuple[Embeddings, Embeddings]:
        """The labelled rows of the train and of the test split, with ``features`` (N, D)."""
        whole = embed.with_features(self.rows, features)
        masks = (np.isin(np.arange(len(whole)), self.known(s)) for s in ("train", "test"))
        first, second = (embed.rows(whole, mask) for mask in masks)
        return first, second

    def measure(self, features: Array) -> dict[str, float]:
        """Accuracy on the whole labelled test split for each measure."""
        train_set, test_set = self.sets(features)
        result = {}
        for measure in MEASURES:
            named = plugins.load("evaluate", measure).predict(train_set, test_set.features)
            result[measure] = float((named == test_set.labels).mean())
        return result


def images_of(folder: Path, image_size: int) -> Images:
    """All images of some shards at one size."""
    reader = ShardReader(folder, None, image_size)
    classes = read_json(folder / "index.json")["classes"]
    return Images(reader, embed.frame(reader.frame, classes), reader.frame["split"].to_numpy(str))


def _is_product(cfg: Config, paths: Paths) -> bool:
    """Whether the chain has just made and embedded this very encoder."""
    files = [f / LINEAGE for f in (paths.pretrain, paths.embeddings, paths.shards)]
    if not all(f.exists() for f in files):
        return False
    trained, embedded = (read_json(f) for f in files[:2])
    return bool(
        trained["config"] == cfg.section("pretrain") | {"seed": cfg.seed}
        and trained["inputs"]["shards"] == sha256_file(files[2])
        and embedded["inputs"]
        == {"shards": sha256_file(files[2]), "pretrain": sha256_file(files[0])}
    )


def _train_one(cfg: Config, paths: Paths, bench: Images, report: Reporter) -> Array:
    """Features (N, D) of one method and seed; checkpoints live beside the result until done."""
    if _is_product(cfg, paths):
        made: Array = np.load(paths.embeddings / "features.npy")
        return made
    key = sha256_json([cfg.section("pretrain"), cfg.seed, sha256_file(paths.shards / LINEAGE)])
    work = paths.runs / "seeds" / key[:12]
    cached = work.with_suffix(".npy")
    if not cached.exists():
        work.mkdir(parents=True, exist_ok=True)
        encoder: Any = pretrain.fit(cfg, paths.shards, work, report).encoder
        colour = models.normalisation(bench.reader.channels)
        embed.save_array(cached, embed.compute(encoder, bench.reader, *colour))
        shutil.rmtree(work)
    result: Array = np.load(cached)
    return result


def _summary(name: str, scores: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "seeds": len(scores)}
    for measure in MEASURES:
        values = [s[measure] for s in scores]
        row[f"{measure}_mean"] = float(np.mean(values))
        row[f"{measure}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        row[f"{measure}_values"] = values
    return row


def checked(section: dict[str, Any], where: str, fix: str) -> Pretrain:
    """Section pretrain with valid options.

    Raises:
        HeadwaterError: a key or option that is unknown, or a bad value; at ``where``.
    """
    try:
        p = Pretrain.model_validate(section)
        job.options(p)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{where}: {'.'.join(map(str, first['loc']))}"
        raise HeadwaterError(place, first["msg"], f"mend {fix}") from None
    return p


def _variant(cfg: Config, arm: Arm, seed: int) -> Config:
    """The configuration of one training.

    Raises:
        HeadwaterError: ``changes`` that section pretrain does not know.
    """
    own = arm.method == cfg.pretrain.method
    base: dict[str, Any] = {} if own else {"options": {}, "lr": None, "weight_decay": None}
    changed = cfg.section("pretrain") | base | {"method": arm.method} | arm.changes
    section = checked(changed, f"changes of arm '{arm.method}'", "seeds.arms in params.yaml")
    return cfg.model_copy(update={"seed": seed, "pretrain": section})


def _name(cfg: Config, arm: Arm) -> str:
    """The arm's own name, else its method and what it changes."""
    if arm.name:
        return arm.name
    backbone = arm.changes.get("backbone", cfg.pretrain.backbone)
    return arm.method if backbone == cfg.pretrain.backbone else f"{arm.method}, {backbone}"


def _plan(cfg: Config) -> dict[str, list[Config]]:
    """All trainings by arm, checked before the first begins.

    Raises:
        HeadwaterError: two arms of one name, or an arm that cannot be configured.
    """
    plan: dict[str, list[Config]] = {}
    for arm in cfg.seeds.arms:
        name = _name(cfg, arm)
        if name in plan:
            raise HeadwaterError(f"arm '{name}'", "is there twice", "give one of them a name")
        plan[name] = [_variant(cfg, arm, cfg.seed + i) for i in range(arm.seeds)]
    return plan


def _baseline(cfg: Config, paths: Paths, bench: Images, name: str, draws: int) -> dict[str, Any]:
    """Only random init has a seed; for it the encoder is drawn as often as arms are trained."""
    own = read_json(paths.evaluation / "metrics.json")[name]  # the chain has measured this seed
    meta = read_json(paths.pretrain / "encoder.json")
    scores = [{measure: float(own[measure]) for measure in MEASURES}]
    for seed in range(cfg.seed + 1, cfg.seed + (draws if name == "random" else 1)):
        scores.append(bench.measure(embed.baseline(name, bench.reader, meta, seed)))
    return _summary(f"{name} (baseline)", scores)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write reports/seeds.json: one row per method and baseline with mean and spread.

    Equal data, steps and batch for all arms, one process each; a finished method and seed is not
    trained again.

    Raises:
        HeadwaterError: stage evaluate has not run on these products, or bad arms.
    """
    plan = _plan(cfg)
    evaluate.require_current(paths.evaluation, shards=paths.shards, pretrain=paths.pretrain)
    bench, rows = images_of(paths.shards, cfg.pretrain.image_size), []
    with Reporter("seeds") as report:
        for name, variants in plan.items():
            scores = []
            for variant in variants:
                scores.append(bench.measure(_train_one(variant, paths, bench, report)))
                report.log(
                    f"{name} seed {variant.seed}: kNN {scores[-1]['knn']:.3f}, "
                    f"linear {scores[-1]['linear']:.3f}"
                )
            rows.append(_summary(name, scores))
        draws = max(len(variants) for variants in plan.values())
        rows += [_baseline(cfg, paths, bench, n, draws) for n in cfg.evaluate.baselines]
    write_json(paths.reports / "seeds.json", rows)
    return {r["name"]: f"knn {r['knn_mean']:.3f} linear {r['linear_mean']:.3f}" for r in rows}
