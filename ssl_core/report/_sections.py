"""The page's sections about data, training and features: product folders in, template values out.

A section returns a dict; {"missing": text} where its product is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ..artifacts import read_json, read_lines
from ..config import Paths
from . import _figures, _images, _select
from ._river import Reach, river
from ._theme import svg

Section = dict[str, Any]
THUMBS = 18  # rejected files shown at most
HISTORY = 12  # validations shown at most
UNSHOWN = {"too-large", "missing-file", "unsafe-path", "symlink-loop", "empty"}


def missing(stage: str) -> Section:
    """The section's apology."""
    return {"missing": f"Nothing here yet: run `headwater {stage}` first."}


def drawing(figure: Any, name: str) -> Markup:
    """Figure as safe inline SVG (matplotlib escapes all text)."""
    return Markup(svg(figure, name))


def flow(paths: Paths) -> Markup | None:
    """The river from files found to train and test images."""
    if not (paths.curated / "curated.parquet").exists():
        return None
    frame = pd.read_parquet(paths.curated / "curated.parquet", columns=["split", "keep", "reason"])
    rejects = paths.manifest / "rejects.parquet"
    refused = len(pd.read_parquet(rejects)) if rejects.exists() else 0
    count = {str(k): int(n) for k, n in frame["reason"].value_counts().items()}

    def lost(*names: tuple[str, str]) -> tuple[tuple[str, int], ...]:
        return tuple((text, count[key]) for key, text in names if count.get(key))

    first = Reach("found", len(frame) + refused, (("unreadable", refused),) if refused else ())
    steps = [
        ("readable", lost(("quarantine", "quarantined"))),
        (
            "valid",
            lost(
                ("duplicate-exact", "equal"),
                ("duplicate-near", "look-alike"),
                ("semantic", "same content"),
                ("leak", "in the test split too"),
            ),
        ),
    ]
    told = {"", "quarantine", "duplicate-exact", "duplicate-near", "semantic", "leak"}
    choices = [(r, "surplus" if r == "balance" else r) for r in sorted(set(count) - told)]
    steps.append(("distinct", lost(*choices)))
    reaches, left = [first], len(frame)
    for name, losses in steps:
        reaches.append(Reach(name, left, losses))
        left -= sum(n for _, n in losses)
    kept = frame[frame["keep"]]
    ends = [(f"{s}", int((kept["split"] == s).sum())) for s in ("train", "test")]
    return river(reaches, ends)


def rejects(paths: Paths) -> Section:
    """Rejected files by reason, with pictures where they can be had."""
    file = paths.manifest / "rejects.parquet"
    if not file.exists():
        return missing("ingest")
    frame = pd.read_parquet(file)
    counts = frame["reason"].value_counts()
    shown = []
    # Round robin over reasons, so that a common one does not crowd out the rest.
    order = frame.groupby("reason").cumcount().sort_values(kind="stable").index
    for row in frame.loc[order].head(THUMBS).itertuples(index=False):
        hidden = row.reason in UNSHOWN
        thumb = None if hidden else _images.from_disk(str(row.path), paths.root)
        name = str(row.path).replace("::", "/").rpartition("/")[2]
        shown.append(
            {"name": name, "reason": row.reason, "detail": row.detail, "image": _images.uri(thumb)}
        )
    return {"counts": [(k, int(v)) for k, v in counts.items()], "shown": shown, "total": len(frame)}


def validation(paths: Paths) -> Section:
    """Expectations by suite, image issues, and what earlier validations found."""
    file = paths.validation / "report.json"
    if not file.exists():
        return missing("validate")
    found = read_json(file)
    issues = sorted(found.get("issues", {}).items(), key=lambda kv: -kv[1])
    return {
        "success": found["success"],
        "suites": suites(paths),
        "issues": [i for i in issues if i[1]],
        "history": read_lines(paths.history)[: -HISTORY - 1 : -1],
    }


def suites(paths: Paths) -> list[tuple[str, list[dict[str, Any]]]]:
    """Expectations of all products by suite, broken ones first."""
    places = [
        (paths.validation / "report.json", ""),
        (paths.seed_embeddings / "expectations.json", " of the seed encoder"),
        (paths.shards / "expectations.json", ""),
        (paths.embeddings / "expectations.json", " of the encoder"),
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for file, whose in places:
        for rule in read_json(file)["expectations"] if file.exists() else ():
            found.setdefault(f"{rule.get('suite', 'manifest')}{whose}", []).append(rule)
    rank = {"critical": 0, "warning": 1}
    order = {
        name: sorted(rules, key=lambda e: (e["success"], rank.get(e["severity"], 2)))
        for name, rules in found.items()
    }
    return list(order.items())


def curation(paths: Paths) -> Section:
    """Duplicates, cluster sizes and the long tail."""
    file = paths.curated / "curated.parquet"
    if not file.exists():
        return missing("curate")
    frame, summary = pd.read_parquet(file), read_json(paths.curated / "summary.json")
    groups = _select.duplicates(frame, paths.root)
    found: Section = {
        "counts": summary["counts"],
        "groups": [(kind, [_images.uri(t) for t in thumbs]) for kind, thumbs in groups],
    }
    if summary["clusters"]["before"]:
        figure = _figures.clusters(summary["clusters"]["before"], summary["clusters"]["after"])
        found["clusters"] = drawing(figure, "clusters")
    if summary["classes"]["before"]:
        figure = _figures.tail(summary["classes"]["before"], summary["classes"]["after"])
        found["tail"] = drawing(figure, "tail")
    return found


def training(paths: Paths) -> Section:
    """Curves and the facts of the run."""
    log = read_lines(paths.pretrain / "log.jsonl")
    if not log:
        return missing("pretrain")
    meta = read_json(paths.pretrain / "encoder.json")
    lineage = _lineage(paths.pretrain / "lineage.json")
    config = lineage.get("config", {})
    facts = {
        "method": meta.get("method"),
        "backbone": meta["model_name"],
        "steps": len(log),
        "batch": config.get("batch_size"),
        "epochs": config.get("epochs"),
        "image": f"{meta['image_size']} px",
        "loss": f"{log[0]['loss']:.3f} → {np.mean([r['loss'] for r in log[-10:]]):.3f}",
    }
    return {
        "facts": {k: v for k, v in facts.items() if v is not None},
        "curves": drawing(_figures.curves(log), "curves"),
    }


def _lineage(file: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_json(file) if file.exists() else {}
    return found


def feature_map(paths: Paths, seed: int) -> Section:
    """Map of held-out images."""
    if not (paths.embeddings / "features.npy").exists():
        return missing("embed")
    found = _select.points(paths.embeddings, seed=seed)
    if len(found.labels) < 3:
        return {"missing": "Fewer than three held-out images: nothing to map."}
    figure = _figures.embedding_map(found.features, found.labels, found.sources, seed)
    return {"map": drawing(figure, "map")}


def retrieval(paths: Paths, seed: int) -> Section:
    """Queries with their nearest training images."""
    if not (paths.embeddings / "features.npy").exists():
        return missing("embed")
    store = _images.Shards(paths.shards)
    rows = [
        [
            {
                "image": _images.uri(store.get(h.key)),
                "label": h.label,
                "source": h.source,
                "right": h.right,
                "cosine": h.cosine,
            }
            for h in (query, *hits)
        ]
        for query, hits in _select.retrieval(paths.embeddings, seed=seed)
    ]
    signs = [bool(cell["right"]) for row in rows for cell in row[1:] if cell["right"] is not None]
    return {"rows": rows, "share": float(np.mean(signs)) if signs else None}


def patches(paths: Paths, seed: int) -> Section:
    """Patch features as colours."""
    if not (paths.pretrain / "encoder.safetensors").exists():
        return missing("pretrain")
    pairs = _select.patch_maps(paths.pretrain, paths.shards, 9, seed)
    if not pairs:
        return {"missing": "This encoder's patch grid is too coarse to draw."}
    return {
        "pairs": [(_images.uri(a), _images.png_uri(b)) for a, b in pairs],
        "grid": "{} × {}".format(*pairs[0][1].shape[:2]),
    }
