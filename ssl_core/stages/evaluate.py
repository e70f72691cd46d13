"""What the features are worth, beside encoders that learned nothing here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import embed, plugins
from ..artifacts import atomic_dir, read_json, sha256_file, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..evaluate import _head, linear
from ..progress import Reporter
from ..types import Array, Embeddings

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
    return pd.DataFrame({
        "sha256": test.sha256, "group": test.groups, "source": test.sources, "label": label,
        "prediction": name, "confidence": confidence, "correct": correct,
    })


def measure(
    name: str, train: Embeddings, test: Embeddings, cfg: Config, report: Reporter
) -> list[dict[str, Any]]:
    """Rows of all measures for one encoder."""
    rows = []
    for kind in cfg.evaluate.measures:
        found = plugins.load("evaluate", kind).run(train, test, cfg.evaluate)
        rows += [{"encoder": name, "measure": kind, **row} for row in found]
        main = next(r for r in found if r["slice"] == "all")
        report.log(f"{name} {kind} {main['value']:.3f}", encoder=name, measure=kind,
                   value=main["value"])
    return rows


def summary(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Encoder -> measure -> value on the whole test split; NaN, which JSON lacks, is left out."""
    main = table[(table["slice"] == "all") & table["metric"].isin(["accuracy", *table["measure"]])]
    found: dict[str, dict[str, float]] = {}
    for row in main.dropna(subset="value").itertuples(index=False):
        found.setdefault(str(row.encoder), {})[str(row.measure)] = float(row.value)  # type: ignore[arg-type]
    return found


def features(cfg: Config, paths: Paths, whole: Embeddings, name: str) -> Array:
    """Features (N, D) of one baseline, rows as in embeddings/.

    Raises:
        HeadwaterError: unknown baseline.
    """
    try:
        found = embed.baseline(name, paths.shards, cfg, paths.pretrain)
    except ValueError as error:
        rule = f"is refused ({error})"
        raise HeadwaterError("evaluate.baselines", rule, "correct params.yaml") from None
    if len(found) != len(whole):
        rule = f"hold {len(found)} images and embeddings/ {len(whole)}"
        raise HeadwaterError(paths.shards, rule, "run stage embed again")
    return found


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write evaluation/: results.parquet, metrics.json, the head and what it says of each image.

    ``baseline_predictions.parquet`` holds the same of each baseline's own linear probe, for the
    first promotion.

    Raises:
        HeadwaterError: embeddings of another encoder, no labels, unknown measure or baseline.
    """
    require_current(paths.embeddings, shards=paths.shards, pretrain=paths.pretrain)
    whole = embed.load(paths.embeddings, None)
    is_train = (pd.read_parquet(paths.embeddings / "index.parquet")["split"] == "train").to_numpy()
    names = [OURS, *cfg.evaluate.baselines]
    rows, others = [], []
    with Reporter("evaluate") as report, atomic_dir(paths.evaluation) as out:
        with report.bar(len(names), "encoders") as advance:
            for name in names:
                own = whole.features if name == OURS else features(cfg, paths, whole, name)
                both = embed.with_features(whole, own)
                train, test = embed.rows(both, is_train), embed.rows(both, ~is_train)
                rows += measure(name, train, test, cfg, report)
                head = linear.fit(train)
                told = predictions(head, test)
                if name == OURS:
                    told.to_parquet(out / "test_predictions.parquet", index=False)
                    _head.save(head, out)
                else:
                    others.append(told.assign(encoder=name))
                advance()
        empty = told.iloc[:0].assign(encoder=pd.Series(dtype="str"))
        pd.concat(others or [empty]).to_parquet(out / "baseline_predictions.parquet", index=False)
        table = pd.DataFrame(rows)[COLUMNS]
        table.to_parquet(out / "results.parquet", index=False)
        write_json(out / "metrics.json", summary(table))
        counts = {"train": int(is_train.sum()), "test": int((~is_train).sum()),
                  "classes": len(np.unique(whole.labels[whole.labels >= 0]))}
        config = cfg.section("evaluate") | cfg.section("seed")
        inputs = {"shards": paths.shards, "pretrain": paths.pretrain,
                  "embeddings": paths.embeddings}
        write_lineage(out, "evaluate", config, inputs, counts)
    return counts | summary(table)
