"""What is suspicious about labels and metadata, on pages to review. Nothing is changed by it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import bands, embed, images
from ..artifacts import atomic_dir, write_json, write_lineage
from ..audit import confounders, label_errors, missing, properties
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..parallel import ordered_map
from ..progress import Reporter
from ..report import audit as page
from ..types import Embeddings
from ..validation.labels import STANDS_FOR_NONE
from . import _corrections
from .evaluate import require_current

SAMPLE = 20_000  # images whose properties are measured, those of least sha256
SIDE = 128  # longest side they are measured at
PAGE = "audit.html"
INFERRED = ("source", "captured_month")


@dataclass(frozen=True)
class Material:
    """Features of N contents, and their rows of the manifest in the same order."""

    embeddings: Embeddings
    manifest: pd.DataFrame
    encoder: str
    inputs: dict[str, Any]


# ---- what there is -----------------------------------------------------------------------------


def manifest(paths: Paths) -> pd.DataFrame:
    """One row per content, without what was quarantined.

    Raises:
        HeadwaterError: there is no manifest.
    """
    file = paths.manifest / "manifest.parquet"
    if not file.exists():
        raise HeadwaterError(file, "is missing", "run stage ingest first")
    frame = pd.read_parquet(file).reset_index(names="place")
    if (paths.validation / "quarantine.parquet").exists():
        bad = pd.read_parquet(paths.validation / "quarantine.parquet")["path"]
        frame = frame[~frame["path"].isin(bad)]
    return frame.drop_duplicates("sha256")


def pretrained(paths: Paths) -> Material:
    """Features of our own encoder, of the images in the shards.

    Raises:
        HeadwaterError: products that do not belong together.
    """
    require_current(paths.embeddings, shards=paths.shards, pretrain=paths.pretrain)
    whole = embed.load(paths.embeddings, None)
    frame = manifest(paths).set_index("sha256", drop=False)
    there = np.isin(whole.sha256, frame.index.to_numpy(str))
    rows = frame.loc[whole.sha256[there].tolist()].reset_index(drop=True)
    inputs = {"embeddings": paths.embeddings, "manifest": paths.manifest}
    return Material(embed.rows(whole, there), rows, "pretrained", inputs)


def seed(paths: Paths) -> Material:
    """Features of the seed encoder; once curated, of the images that were kept.

    Raises:
        HeadwaterError: they are not there, or belong to another manifest.
    """
    file = paths.seed_embeddings / "embeddings.npy"
    if not file.exists():
        raise HeadwaterError(file, "is missing", "run stages ingest to seed_embed first")
    require_current(paths.seed_embeddings, manifest=paths.manifest)
    frame = manifest(paths)
    if (paths.curated / "curated.parquet").exists():
        kept = pd.read_parquet(paths.curated / "curated.parquet", columns=["sha256", "keep"])
        frame = frame[~frame["sha256"].isin(kept.loc[~kept["keep"], "sha256"])]
    features = np.load(file, mmap_mode="r")[frame["place"].to_numpy()]
    rows = frame.reset_index(drop=True)
    names = sorted(rows["label"].dropna().unique().tolist())
    table = embed.with_features(embed.frame(rows, names), features)
    inputs = {"seed_embeddings": paths.seed_embeddings, "manifest": paths.manifest}
    return Material(table, rows, "seed", inputs)


def material(cfg: Config, paths: Paths) -> Material:
    """The features that ``audit.features`` asks for."""
    own = (paths.embeddings / "features.npy").exists()
    use = {"auto": own, "pretrained": True, "seed": False}[cfg.audit.features]
    return pretrained(paths) if use else seed(paths)


def pictures(rows: pd.DataFrame, cfg: Config, paths: Paths, report: Reporter) -> pd.DataFrame:
    """``properties.IMAGE`` of each row's file.

    Raises:
        HeadwaterError: an image changed since ingest.
    """

    def look(ref: str) -> tuple[float | str, ...]:
        try:
            data = images.read_bytes(ref, paths.root)
            pixels = images.decode(data, SIDE, channels=cfg.data.channels)
        except (images.Reject, OSError) as error:
            rule = f"was readable at ingest and is not now ({error})"
            raise HeadwaterError(ref, rule, "run stage ingest again") from error
        return properties.measure(np.ascontiguousarray(bands.to_rgb(pixels)))

    threads, found = os.cpu_count() or 1, []
    with report.bar(len(rows), "img") as advance:
        for row in ordered_map(look, rows["path"].tolist(), threads, ahead=32 * threads):
            found.append(row)
            advance()
    return pd.DataFrame(found, columns=list(properties.IMAGE))


# ---- what is found -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Labelled images whose class has groups enough: which rows, and what probes say of them."""

    mask: NDArray[np.bool_]
    embeddings: Embeddings
    probabilities: NDArray[np.float32]


def judge(m: Material, cfg: Config) -> Judged | None:
    """Out-of-sample probes; None with fewer than two classes."""
    e = m.embeddings
    mask = label_errors.judged(e)
    if len(np.unique(e.labels[mask])) < 2:
        return None
    known = embed.rows(e, mask)
    return Judged(mask, known, label_errors.out_of_sample(known, cfg.audit.folds, cfg.seed))


def errors(m: Material, judged: Judged | None, reviewed: set[str]) -> pd.DataFrame:
    """Doubtful labels first; ``reviewed`` contents are no issue any more."""
    if judged is None:
        columns = {c: pd.Series(dtype="str") for c in ("path", *label_errors.COLUMNS)}
        kinds = {"quality": "float64", "confidence": "float64", "issue": "bool"}
        return pd.DataFrame(columns).astype(kinds)
    table = label_errors.find(judged.embeddings, judged.probabilities)
    table = table.assign(path=m.manifest.loc[judged.mask, "path"].to_numpy())
    table["issue"] &= ~table["sha256"].isin(reviewed)
    return table.sort_values(["quality", "sha256"], ignore_index=True)


def known(values: pd.Series) -> pd.Series:
    """Values as text; null where a text only stands for none."""
    text = values.astype("str")
    return text.mask(text.str.fullmatch(STANDS_FOR_NONE.strip("^$")).fillna(False).astype(bool))


def infer(m: Material, table: pd.DataFrame, cfg: Config) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Guesses for missing metadata (``missing.COLUMNS``), and what is known of their quality."""
    parts, about = [], {}
    for name in INFERRED:
        values, e = known(table[name]), m.embeddings
        found, bar = missing.infer(e.features, e.groups, values, cfg.audit.precision)
        rows = m.manifest.iloc[found["row"].to_numpy()]
        parts.append(
            found.assign(
                sha256=rows["sha256"].to_numpy(), path=rows["path"].to_numpy(), column=name
            )
        )
        about[name] = {
            "missing": len(found),
            "inferred": int((found["value"] != missing.UNKNOWN).sum()),
            "vote": bar.vote,
            "precision": bar.precision,
        }
    whole = pd.concat(parts, ignore_index=True)[list(missing.COLUMNS)]
    texts = dict.fromkeys(("sha256", "path", "column", "value"), "str")
    return whole.astype(texts), about


def filled(table: pd.DataFrame, guesses: pd.DataFrame, m: Material, cfg: Config) -> pd.DataFrame:
    """Metadata with the guesses of the columns that ``audit.fill`` names, where none is given."""
    for name in cfg.audit.fill:
        own = guesses[(guesses["column"] == name) & (guesses["value"] != missing.UNKNOWN)]
        guess = m.manifest["sha256"].map(dict(zip(own["sha256"], own["value"], strict=True)))
        given = known(table[name])
        table = table.assign(**{name: given.where(given.notna(), guess)})
    return table


def suspects(
    m: Material, judged: Judged | None, columns: list[properties.Property], rows: NDArray[np.int64]
) -> tuple[confounders.Ground | None, list[properties.Property], NDArray[np.int64]]:
    """Labelled images among the measured ``rows``: the ground, their properties, their rows."""
    if judged is None:
        return None, [], rows
    place = np.full(len(m.embeddings), -1)
    place[judged.mask] = np.arange(int(judged.mask.sum()))
    has = place[rows] >= 0
    at = place[rows][has]
    e = embed.rows(judged.embeddings, at)
    said = judged.probabilities[at].argmax(axis=1)
    ground = confounders.Ground(e.labels, said, e.groups, e.classes)
    return ground, [c.rows(has) for c in columns], rows[has]


def conspicuous(
    m: Material,
    judged: Judged | None,
    metadata: pd.DataFrame,
    cfg: Config,
    paths: Paths,
    report: Reporter,
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The table of confounders, and its rows with images to look at."""
    e = m.embeddings
    rows = np.sort(np.argsort(e.sha256, kind="stable")[:SAMPLE])
    looked = pictures(m.manifest.iloc[rows], cfg, paths, report)
    table = pd.concat([metadata.iloc[rows].reset_index(drop=True), looked], axis=1)
    columns = properties.prepare(table)
    ground, own, at = suspects(m, judged, columns, rows)
    cluster = confounders.clusters(e.features[rows], cfg.seed)
    found = confounders.rank(
        confounders.search(ground, own, cfg.audit, cfg.seed) if ground else pd.DataFrame(),
        confounders.by_cluster(cluster, e.groups[rows], columns, cfg.audit, cfg.seed),
    )
    return found, shown(found, ground, own, m.manifest["path"].iloc[at].tolist())


def shown(
    table: pd.DataFrame,
    ground: confounders.Ground | None,
    columns: list[properties.Property],
    refs: list[str],
) -> list[dict[str, Any]]:
    """Findings with images to look at, for the page."""
    by_name, found = {c.name: c for c in columns}, []
    for row in table.to_dict("records"):
        cells: dict[str, list[str]] = {}
        new = row["named"] and not row["same_as"]
        if new and row["target"] == "label" and ground is not None:
            places = confounders.examples(ground, by_name[row["property"]], row["class"])
            cells = {k: [refs[i] for i in v] for k, v in places.items()}
        found.append({**{str(k): v for k, v in row.items()}, "images": cells})
    return found


# ---- the stage ---------------------------------------------------------------------------------


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write reports/audit/: label_errors.parquet, confounders.parquet, inferred.parquet,
    summary.json and audit.html, the page to review.

    Raises:
        HeadwaterError: no features, products that do not belong together, or an image that
            changed since ingest.
    """
    place = (paths.audit / PAGE).as_posix()
    with Reporter("audit") as report, atomic_dir(paths.audit) as out:
        m = material(cfg, paths)
        judged = judge(m, cfg)
        doubtful = errors(m, judged, set(_corrections.read(paths.corrections)))
        metadata = properties.metadata_table(m.manifest)
        guesses, inferred = infer(m, metadata, cfg)
        metadata = filled(metadata, guesses, m, cfg)
        found, findings = conspicuous(m, judged, metadata, cfg, paths, report)
        summary: dict[str, Any] = {
            "encoder": m.encoder,
            "images": len(m.embeddings),
            "judged": 0 if judged is None else len(judged.embeddings),
            "label_errors": int(doubtful["issue"].sum()),
            "confounders": found.loc[found["named"] & (found["same_as"] == ""), "text"].tolist(),
            "inferred": inferred,
        }
        tables = {"label_errors": doubtful, "confounders": found, "inferred": guesses}
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", engine="pyarrow", index=False)
        write_json(out / "summary.json", summary)
        cards = doubtful[doubtful["issue"]].head(cfg.audit.review)
        classes = list(m.embeddings.classes)
        (out / PAGE).write_text(page.render(summary, cards, findings, classes, paths.root))
        counts = {k: summary[k] for k in ("images", "judged", "label_errors")}
        counts["confounders"] = len(summary["confounders"])
        write_lineage(out, "audit", cfg.section("audit") | {"seed": cfg.seed}, m.inputs, counts)
        report.log(
            f"{counts['judged']} labels judged, {counts['label_errors']} doubtful; "
            f"{counts['confounders']} findings about confounders; {place}"
        )
    return {**summary, "page": place}
