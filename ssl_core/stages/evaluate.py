"""What the features are worth, beside encoders that learned nothing here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import embed, plugins
from ..artifacts import atomic_dir, read_json, sha256_file, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..evaluate import _common, _head, linear
from ..parallel import ordered_map
from ..progress import Reporter
from ..types import Array, Embeddings
from ._gate import require_sound

OURS = "pretrained"
COLUMNS = ["encoder", "measure", "metric", "slice", "value", "low", "high", "n"]


def require_current(product: Path, **inputs: Path) -> None:
    """Refuse a product that was made from other inputs than those that lie there now.

    Raises:
        HeadwaterError: as said; the message names both.
    """
    recorded = read_json(product / "lineage.json")["inputs"]
    for name, folder in inputs.items():
        if recorded.get(name) != sha256_file(folder / "lineage.json"):
            rule = f"was made from another version of {folder.name}/"
            raise HeadwaterError(product, rule, "run `dvc repro`, or its stage again")


def predictions(head: _head.Head, test: Embeddings) -> pd.DataFrame:
    """What the head says of each test image; label and correct are null without a label."""
    name, confidence = head.predict(test.features)
    known = test.labels >= 0
    label = pd.Series([test.classes[i] if i >= 0 else None for i in test.labels], dtype="str")
    correct = pd.Series(name == label.to_numpy(object), dtype="boolean").where(known)
    return pd.DataFrame(
        {
            "sha256": test.sha256,
            "group": test.groups,
            "source": test.sources,
            "label": label,
            "prediction": name,
            "confidence": confidence,
            "correct": correct,
        }
    )


def values(
    kind: str, head: _head.Head, train: Embeddings, test: Embeddings, cfg: Config
) -> list[dict[str, Any]]:
    """Rows of one measure; ``head`` is the linear probe of ``train``."""
    if kind == "linear":  # the dearest fit is not made twice
        return linear.rows(head, train, test, cfg.evaluate)
    found: list[dict[str, Any]] = plugins.load("evaluate", kind).run(train, test, cfg.evaluate)
    return found


def measure(
    name: str, train: Embeddings, test: Embeddings, cfg: Config, report: Reporter
) -> tuple[list[dict[str, Any]], _head.Head]:
    """Rows of all measures for one encoder, and its linear head."""
    rows, head = [], linear.fit(train)
    for kind in cfg.evaluate.measures:
        found = values(kind, head, train, test, cfg)
        rows += [{"encoder": name, "measure": kind, **row} for row in found]
        main = next(r for r in found if r["slice"] == "all")
        report.log(
            f"{name} {kind} {main['value']:.3f}", encoder=name, measure=kind, value=main["value"]
        )
    return rows, head


def summary(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Encoder -> measure -> its main number, the first on the whole test split.

    NaN, which JSON lacks, is left out.
    """
    main = table[table["slice"] == "all"].drop_duplicates(["encoder", "measure"])
    found: dict[str, dict[str, float]] = {}
    for row in main.dropna(subset="value").itertuples(index=False):
        found.setdefault(str(row.encoder), {})[str(row.measure)] = float(row.value)  # type: ignore[arg-type]
    return found


def features(paths: Paths, whole: Embeddings, name: str) -> Array:
    """Features (N, D) of one encoder, rows as in embeddings/; the seed's were made for curation.

    Raises:
        HeadwaterError: stage embed did not compute that baseline, or products that do not
            belong together.
    """
    if name == OURS:
        return whole.features
    if name == "seed":
        return seed_features(paths, whole)
    file = paths.embeddings / f"{name}.npy"
    if not file.exists():
        rule = "is not among the features of stage embed"
        raise HeadwaterError(f"evaluate.baselines '{name}'", rule, "run stage embed again")
    found: Array = np.load(file)
    return found


def seed_features(paths: Paths, whole: Embeddings) -> Array:
    """Rows of seed_embeddings/ by content: (N, D).

    Raises:
        HeadwaterError: an image of the shards is not in the manifest.
    """
    require_current(paths.seed_embeddings, manifest=paths.manifest)
    keys = pd.read_parquet(paths.manifest / "manifest.parquet", columns=["sha256"])["sha256"]
    place = pd.Series(np.arange(len(keys)), keys)[~keys.duplicated().to_numpy()]
    rows = place.reindex(whole.sha256)
    if rows.isna().any():
        rule = "does not hold every image of the shards"
        raise HeadwaterError(paths.manifest, rule, "run `dvc repro`")
    found: Array = np.load(paths.seed_embeddings / "embeddings.npy")[rows.to_numpy(np.int64)]
    return found


def _measure_all(
    cfg: Config,
    paths: Paths,
    whole: Embeddings,
    is_train: NDArray[np.bool_],
    names: list[str],
    report: Reporter,
    out: Path,
) -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
    """Rows of all encoders, and what each one's head says of the test split; ours is saved.

    Encoders are measured side by side, each on one BLAS thread: the products are too small for
    threads to pay inside them.
    """

    def one(item: tuple[str, Array]) -> tuple[str, list[dict[str, Any]], pd.DataFrame]:
        name, own = item
        both = embed.with_features(whole, own)
        train, test = embed.rows(both, is_train), embed.rows(both, ~is_train)
        found, head = measure(name, train, test, cfg, report)
        if name == OURS:
            _head.save(head, out)
        return name, found, predictions(head, test)

    everything = [(name, features(paths, whole, name)) for name in names]
    rows, tables = [], {}
    with report.bar(len(names), "encoders") as advance, _common.threads(0):
        for name, found, told in ordered_map(one, everything, os.cpu_count() or 1, len(names)):
            rows += found
            tables[name] = told
            advance()
    return rows, tables


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write evaluation/: results.parquet, metrics.json, the head and what it says of each image.

    ``baseline_predictions.parquet`` holds the same of each baseline's own linear probe, for the
    first promotion.

    Raises:
        HeadwaterError: embeddings of another encoder, no labels, unknown measure or baseline.
    """
    require_current(paths.embeddings, shards=paths.shards, pretrain=paths.pretrain)
    require_sound(paths.embeddings, "embed")
    whole = embed.load(paths.embeddings, None)
    is_train = (pd.read_parquet(paths.embeddings / "index.parquet")["split"] == "train").to_numpy()
    names = [OURS, *cfg.evaluate.baselines]
    with Reporter("evaluate") as report, atomic_dir(paths.evaluation) as out:
        rows, tables = _measure_all(cfg, paths, whole, is_train, names, report, out)
        told = tables.pop(OURS)
        told.to_parquet(out / "test_predictions.parquet", index=False)
        others = [table.assign(encoder=name) for name, table in tables.items()]
        empty = told.iloc[:0].assign(encoder=pd.Series(dtype="str"))
        pd.concat(others or [empty]).to_parquet(out / "baseline_predictions.parquet", index=False)
        table = pd.DataFrame(rows)[COLUMNS]
        table.to_parquet(out / "results.parquet", index=False)
        write_json(out / "metrics.json", summary(table))
        counts = {
            "train": int(is_train.sum()),
            "test": int((~is_train).sum()),
            "classes": len(np.unique(whole.labels[whole.labels >= 0])),
        }
        config = cfg.section("evaluate") | cfg.section("seed")
        inputs = {
            "shards": paths.shards,
            "pretrain": paths.pretrain,
            "embeddings": paths.embeddings,
            "manifest": paths.manifest,
            "seed_embeddings": paths.seed_embeddings,
        }
        write_lineage(out, "evaluate", config, inputs, counts)
    return counts | summary(table)
