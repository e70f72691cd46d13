"""Is the gain real? Train methods over several seeds and hold them against the baselines."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from .. import embed, plugins, train
from ..artifacts import LINEAGE, read_json, sha256_file, sha256_json, write_json
from ..config import Arm, Config, Paths, Pretrain
from ..progress import Reporter
from ..shards import ShardReader
from ..types import Array, Embeddings
from . import evaluate

MEASURES = ("knn", "linear")


def _measure(frame: Embeddings, split: Array, features: Array) -> dict[str, float]:
    """Accuracy on the whole test split for each measure."""
    whole = embed.with_features(frame, features)
    known = whole.labels >= 0
    train_set, test_set = (embed.rows(whole, known & (split == s)) for s in ("train", "test"))
    result = {}
    for measure in MEASURES:
        named = plugins.load("evaluate", measure).predict(train_set, test_set.features)
        result[measure] = float((named == test_set.labels).mean())
    return result


def _is_product(cfg: Config, paths: Paths) -> bool:
    """Whether the chain has just made and embedded this very encoder."""
    files = [f / LINEAGE for f in (paths.pretrain, paths.embeddings, paths.shards)]
    if not all(f.exists() for f in files):
        return False
    trained, embedded = (read_json(f) for f in files[:2])
    return bool(
        trained["config"] == cfg.section("pretrain") | {"seed": cfg.seed}
        and trained["inputs"]["shards"] == sha256_file(files[2])
        and embedded["inputs"] == {"shards": sha256_file(files[2]),
                                   "pretrain": sha256_file(files[0])}
    )


def _train_one(cfg: Config, paths: Paths, report: Reporter) -> Array:
    """Features (N, D) of one method and seed; checkpoints live beside the result until done."""
    if _is_product(cfg, paths):
        found: Array = np.load(paths.embeddings / "features.npy")
        return found
    key = sha256_json([cfg.section("pretrain"), cfg.seed, sha256_file(paths.shards / LINEAGE)])
    work = paths.runs / "seeds" / key[:12]
    cached = work.with_suffix(".npy")
    if not cached.exists():
        work.mkdir(parents=True, exist_ok=True)
        method = train.fit(cfg, paths.shards, work, report)
        reader = ShardReader(paths.shards, None, cfg.pretrain.image_size)
        encoder: Any = method.encoder
        features = embed.compute(encoder, reader, train.MEAN, train.STD)
        embed.save_array(cached, features)
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


def _variant(cfg: Config, arm: Arm, seed: int) -> Config:
    own = arm.method == cfg.pretrain.method
    base: dict[str, Any] = {} if own else {"options": {}, "lr": None, "weight_decay": None}
    changed = cfg.section("pretrain") | base | {"method": arm.method} | arm.changes
    pretrain = Pretrain.model_validate(changed)
    return cfg.model_copy(update={"seed": seed, "pretrain": pretrain})


def _name(cfg: Config, arm: Arm) -> str:
    backbone = arm.changes.get("backbone", cfg.pretrain.backbone)
    return arm.method if backbone == cfg.pretrain.backbone else f"{arm.method}, {backbone}"


def _baseline(
    cfg: Config, paths: Paths, frame: Embeddings, split: Array, name: str, draws: int
) -> dict[str, Any]:
    """Only random init has a seed; for it the encoder is drawn as often as arms are trained."""
    own = read_json(paths.evaluation / "metrics.json")[name]  # the chain has measured this seed
    scores = [{measure: float(own[measure]) for measure in MEASURES}]
    for seed in range(cfg.seed + 1, cfg.seed + (draws if name == "random" else 1)):
        features = evaluate.features(cfg.model_copy(update={"seed": seed}), paths, frame, name)
        scores.append(_measure(frame, split, features))
    return _summary(f"{name} (baseline)", scores)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write reports/seeds.json: one row per method and baseline with mean and spread.

    Equal data, steps and batch for all arms; a finished method and seed is not trained again.
    """
    evaluate.require_current(paths.evaluation, shards=paths.shards, pretrain=paths.pretrain)
    reader = ShardReader(paths.shards, None, cfg.pretrain.image_size)
    classes = read_json(paths.shards / "index.json")["classes"]
    frame = embed.frame(reader.frame, classes)
    split = reader.frame["split"].to_numpy()
    rows = []
    with Reporter("seeds") as report:
        for arm in cfg.seeds.arms:
            name, scores = _name(cfg, arm), []
            for seed in range(cfg.seed, cfg.seed + arm.seeds):
                features = _train_one(_variant(cfg, arm, seed), paths, report)
                scores.append(_measure(frame, split, features))
                report.log(f"{name} seed {seed}: kNN {scores[-1]['knn']:.3f}, "
                           f"linear {scores[-1]['linear']:.3f}")
            rows.append(_summary(name, scores))
        draws = max(arm.seeds for arm in cfg.seeds.arms)
        rows += [_baseline(cfg, paths, frame, split, name, draws)
                 for name in cfg.evaluate.baselines]
    write_json(paths.reports / "seeds.json", rows)
    return {r["name"]: f"knn {r['knn_mean']:.3f} linear {r['linear_mean']:.3f}" for r in rows}
