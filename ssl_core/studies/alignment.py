"""Which data suits a task: quantity, domain, quality, granularity (arXiv 2105.05837, 2302.13602).

The axes of Cole et al. All pretraining sets are parts of the training split; all encoders are
probed on the same clean images. Equal optimiser steps, or equal epochs with
``study.equal: epochs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..config import Config, Paths
from ..evaluate import _common as probes
from ..evaluate import few_shot
from ..stages.seeds import Images
from ..types import Array, Embeddings, Labels
from . import _charts, _common, _lab, _parts, _worse
from ._common import Claim, Study

RULES = 1  # raise it when a row would be measured differently
COLE, ENTEZARI = "arXiv 2105.05837", "arXiv 2302.13602"
DRAWS = 20  # choices of few images
ALL = "all"
CLEAN, WHOLE = "clean", "all images"


@dataclass(frozen=True)
class Arm:
    """One pretraining set. ``share`` is its size over that of the whole training split."""

    axis: str
    name: str
    folder: Path
    method: str
    share: float = 1.0
    source: str = ""  # where its images come from, on the axis of domains


def run(cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Pretrain on parts and variants of every set.

    Raises:
        HeadwaterError: a set that is not there, or a part that holds a test image.
    """
    rows, left_out = [], []
    with _lab.opened("alignment", cfg, paths, quick) as lab:
        for set_, folder in lab.sets():
            whole = _lab.images(folder, lab)
            for seed in lab.seeds:
                for arm in _arms(lab, folder, seed, quick):
                    _parts.require_disjoint(arm.folder, folder)
                    rows += _cell(lab, {"set": set_, "seed": seed}, arm, whole)
            left_out += _lacks(set_, folder)
    return report(pd.DataFrame(rows), cfg, tuple(left_out))


# ---- the pretraining sets ----------------------------------------------------------------------


def coarse(labels: pd.Series) -> pd.Series:
    """``group/subgroup`` -> ``group``."""
    found: pd.Series = labels.str.split("/").str[0]
    return found


def has_levels(table: pd.DataFrame) -> bool:
    """Whether labels have two levels that differ."""
    known = table["label"].dropna().astype(str)
    return bool(known.str.contains("/").all()) and 1 < coarse(known).nunique() < known.nunique()


def _lacks(set_: str, folder: Path) -> list[str]:
    table = _parts.index(folder)
    found = []
    if table["source"].nunique() < 2:
        found.append(f"{set_}: all images come from one source, so there is no axis of domains.")
    if not has_levels(table):
        found.append(f"{set_}: labels are not group/subgroup, so there is no axis of granularity.")
    return found


def _arms(lab: _lab.Lab, folder: Path, seed: int, quick: bool) -> Iterator[Arm]:
    table = _parts.index(folder)
    train = table[table["split"] == "train"]
    method = lab.cfg.study.method
    yield Arm("quantity", WHOLE, folder, method)
    chosen = sorted(q for q in lab.cfg.study.quantities if q < 1)
    for share, part in quantities(train, chosen[:1] if quick else chosen, seed):
        made = _parts.write(lab.home, folder, part)
        yield Arm("quantity", f"{share:g}", made, method, len(part) / len(train))
    for name, change in list(_worse.KINDS.items())[: 1 if quick else None]:
        made = _parts.write(lab.home, folder, train, change, name)
        yield Arm("quality", name, made, method)
    yield Arm("granularity", "fine labels", folder, "supervised")
    if has_levels(table):
        upper = _parts.write(lab.home, folder, train.assign(label=coarse(train["label"])))
        yield Arm("granularity", "coarse labels", upper, "supervised")
    for source, part in _domains(train, seed):
        made = _parts.write(lab.home, folder, part)
        yield Arm("domain", source or "mixed", made, method, len(part) / len(train), source)


def quantities(
    train: pd.DataFrame, shares: Sequence[float], seed: int
) -> Iterator[tuple[float, pd.DataFrame]]:
    """Nested, with the shares of classes kept."""
    counts = [max(2, round(share * len(train))) for share in shares]
    kept = _parts.nested(train["key"], train["label"], counts, seed)
    for share, keys in zip(shares, kept, strict=True):
        yield share, train[train["key"].isin(keys)]


def _domains(train: pd.DataFrame, seed: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Equally many images of each source, and of all of them together (""), by class."""
    count = train["source"].value_counts()
    if len(count) < 2:
        return
    least = int(count.min())
    for name in sorted(count.index):
        own = train[train["source"] == name]
        [keys] = _parts.nested(own["key"], own["label"], [least], seed)
        yield str(name), own[own["key"].isin(keys)]
    [keys] = _parts.nested(train["key"], train["source"], [least], seed)
    yield "", train[train["key"].isin(keys)]


# ---- what is measured --------------------------------------------------------------------------


def _cell(lab: _lab.Lab, facts: dict[str, Any], arm: Arm, whole: Images) -> list[dict[str, Any]]:
    """A line per target: the whole set, or each source on the axis of domains."""
    share = arm.share if lab.cfg.study.equal == "epochs" else 1.0
    training = lab.training(arm.folder, arm.method, facts["seed"], share)
    facts = facts | {"axis": arm.axis, "arm": arm.name, "share": arm.share}
    targets = [ALL] if arm.axis != "domain" else sorted(set(whole.rows.sources.tolist()))
    settings = [list(lab.cfg.study.shots), targets]

    def work() -> dict[str, Any]:
        features = _lab.features(training.encoder, whole)
        found = {t: _measure(lab, features, whole, t) for t in targets}
        return {"targets": found, "steps": training.steps}

    kept = lab.row(facts, [RULES, "alignment", training.key, settings], work)
    if "failed" in kept:
        return [kept]
    lines = []
    for target, measured in kept["targets"].items():
        role = "mixed" if not arm.source else "in-domain" if target == arm.source else "other"
        own = {"target": target, "steps": kept["steps"]}
        lines.append(facts | own | ({"role": role} if arm.axis == "domain" else {}) | measured)
    return lines


def _measure(lab: _lab.Lab, features: Array, whole: Images, target: str) -> dict[str, float]:
    """Probes on the labelled images of one source, or of all."""
    sides = whole.sets(features)
    train, test = (e if target == ALL else probes.take(e, e.sources == target) for e in sides)
    named = _lab.named(train, test)
    found = _lab.shares(named, test) | _shots(train, test, lab.cfg.study.shots)
    if all("/" in name for name in whole.rows.classes):
        found |= _levels(train, test, named["linear"])
    return found


def to_coarse(rows: Embeddings) -> Embeddings:
    """The same rows with the upper level of their labels: an exact map of the lower one."""
    upper = [name.split("/")[0] for name in rows.classes]
    names = sorted(set(upper))
    code = np.array([names.index(name) for name in upper])
    return replace(rows, labels=code[rows.labels], classes=tuple(names))


def _levels(train: Embeddings, test: Embeddings, fine: Labels) -> dict[str, float]:
    """A probe of the upper level, and the lower level's answers mapped to it: neither is above."""
    upper, truth = to_coarse(train), to_coarse(test)
    if len(upper.classes) < 2:
        return {}
    found = {f"coarse_{k}": v for k, v in _lab.accuracies(upper, truth).items()}
    mapped = to_coarse(replace(test, labels=fine)).labels
    return found | {"coarse_of_fine": float((mapped == truth.labels).mean())}


def _shots(train: Embeddings, test: Embeddings, shots: tuple[int, ...]) -> dict[str, float]:
    """Nearest class mean from few images of each class, and from all of them."""
    mean = train.features.mean(0)
    x, target = (probes.unit(e.features - mean).astype(np.float32) for e in (train, test))

    def right(rows: Any) -> float:
        named = few_shot.nearest_mean(x[rows], train.labels[rows], target)
        return float((named == test.labels).mean())

    found = {f"shots_{ALL}": right(np.arange(len(train)))}
    for count in shots:
        rng = np.random.default_rng(0)
        drawn = [right(few_shot.choose(train, count, rng)) for _ in range(DRAWS)]
        found[f"shots_{count}"] = float(np.mean(drawn))
    return found


# ---- what it says ------------------------------------------------------------------------------


def report(rows: pd.DataFrame, cfg: Config, left_out: tuple[str, ...]) -> Study:
    """Claims, pictures and tables of the rows."""
    rows, failed = _common.split_failed(rows, ["set", "axis", "arm", "seed"])
    s = cfg.study
    shots = [f"shots_{n}" for n in (*s.shots, ALL)]
    measures = ["linear", "knn", "coarse_linear", "coarse_of_fine", *shots]
    measures = [m for m in measures if m in rows]
    claims = [c for set_, part in rows.groupby("set", sort=False) for c in _claims(set_, part, s)]
    one = rows[rows["axis"] != "domain"]
    domains = rows[rows["axis"] == "domain"]
    tables = {str(n): _common.means(p, ["axis", "arm"], measures) for n, p in one.groupby("set")}
    if len(domains):
        tables["Domains, mean over targets"] = _common.means(
            domains.groupby(["set", "role", "seed"], as_index=False)[measures].mean(),
            ["set", "role"],
            measures,
        )
    equal = "optimiser steps" if s.equal == "steps" else "epochs"
    return Study(
        title="Data and task: quantity, domain, quality, granularity",
        question="What of the pretraining data counts for a probe on clean images?",
        design=(
            f"{s.method}, {s.teraflops:g} TFLOP for the whole training split, equal {equal}.",
            "quantity: nested parts with the shares of classes kept. quality: all images "
            f"downsampled by {_worse.FACTOR}, JPEG of quality {_worse.QUALITY}, or "
            f"{_worse.SHARE:.0%} salt and pepper; probes see clean ones. domain: equally many "
            "images of one source or of all, probed on each source. granularity: supervised "
            "training on fine or coarse labels beside the method without labels.",
            f"shots: nearest class mean from so many images of each class, mean over {DRAWS} "
            "choices. coarse_of_fine: the fine probe's answers, mapped to the coarse level.",
            "No test image or group is in any pretraining set; that is checked, not assumed.",
        ),
        rows=rows,
        claims=claims,
        pictures=_pictures(rows, shots),
        tables=tables,
        left_out=left_out + failed,
    )


def _claims(set_: Any, rows: pd.DataFrame, study: Any) -> list[Claim]:
    name = str(set_)
    axis, arm = rows["axis"], rows["arm"]
    whole = (axis == "quantity") & (arm == WHOLE)

    def less(measure: str, more: Any, other: Any) -> pd.Series:
        return _common.difference(rows, measure, more, other)

    def says(source: str, text: str, measured: str, values: pd.Series) -> Claim:
        return _common.judge(source, text, name, measured, values)

    found = [
        says(COLE, *words, values)
        for words, values in (*_on_quantity(rows, less), *_on_quality(rows, whole, less))
    ]
    if (axis == "domain").any():
        inside, other, mixed = (rows.get("role") == r for r in ("in-domain", "other", "mixed"))
        found += [
            says(
                COLE,
                "Pretraining on the task's own domain is better than on another",
                "linear probe, in-domain less other",
                less("linear", inside, other),
            ),
            says(
                COLE,
                "Adding other domains at equal size does not make features more general",
                "linear probe, in-domain less mixed",
                less("linear", inside, mixed),
            ),
            says(
                ENTEZARI,
                "The choice of source counts most with few labels",
                f"relative gap between in-domain and other, {study.shots[0]} shot less all images",
                _gap(rows, inside, other, f"shots_{study.shots[0]}")
                - _gap(rows, inside, other, f"shots_{ALL}"),
            ),
        ]
    fine, upper = (
        (axis == "granularity") & (arm == f"{level} labels") for level in ("fine", "coarse")
    )
    lead = less("linear", fine, whole)
    found.append(
        says(
            COLE,
            "Supervised training on the same images is ahead of training without labels",
            "linear probe, supervised less not",
            lead,
        )
    )
    if upper.any():
        found.append(
            says(
                COLE,
                "The finer the labels, the further training without labels falls behind",
                "lead of supervised training, fine less coarse",
                (lead - less("coarse_linear", upper, whole)).dropna(),
            )
        )
    return [c for c in found if c.seeds]


Words = tuple[str, str]


def _on_quantity(rows: pd.DataFrame, less: Any) -> Iterator[tuple[Words, pd.Series]]:
    own = rows["axis"] == "quantity"
    sizes = sorted(rows[own]["share"].unique())
    at = [own & (rows["share"] == size) for size in sizes]
    if len(sizes) < 2:
        return
    words = "More pretraining images are better", f"linear probe, all less {sizes[0]:.3g} of them"
    yield words, less("linear", at[-1], at[0])
    if len(sizes) > 2:
        first = less("linear", at[1], at[0]) / np.log2(sizes[1] / sizes[0])
        last = less("linear", at[-1], at[-2]) / np.log2(sizes[-1] / sizes[-2])
        words = "The gain of more images shrinks", "gain of a doubling, first less last"
        yield words, (first - last).dropna()


def _on_quality(rows: pd.DataFrame, whole: Any, less: Any) -> Iterator[tuple[Words, pd.Series]]:
    own = rows["axis"] == "quality"
    if not own.any():
        return
    words = "Worse pretraining images give worse features", "linear probe, clean less worse"
    yield words, less("linear", whole, own)
    low = own & (rows["arm"] == "downsampled")
    if low.any() and (own & ~low).any():
        words = "Low resolution hurts most", "linear probe, other damage less low resolution"
        yield words, less("linear", own & ~low, low)


def _gap(rows: pd.DataFrame, more: Any, other: Any, measure: str) -> pd.Series:
    """Difference over mean, by seed."""
    first, second = (rows[m].groupby("seed")[measure].mean() for m in (more, other))
    found: pd.Series = (first - second) / ((first + second) / 2)
    return found


def _pictures(rows: pd.DataFrame, shots: list[str]) -> dict[str, bytes]:
    shown = rows.copy()
    shown["arm"] = shown["axis"] + ": " + shown.get("role", shown["arm"]).fillna(shown["arm"])
    panels = {"linear": "linear probe", "knn": "kNN", "coarse_linear": "coarse linear probe"}
    panels |= {shots[0]: shots[0].replace("_", ": "), shots[-1]: "shots: all"}
    panels = {m: t for m, t in panels.items() if m in rows}
    return {"alignment": _charts.bars(shown, "arm", panels)}
