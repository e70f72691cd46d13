"""Which measure without labels tracks nearest neighbours, over training and over encoders?

RankMe (arXiv 2210.02885), LiDAR (2312.04000), alpha-ReQ (2202.05808), alignment and uniformity
(2005.10242), tolerance (2012.09740, which needs labels). Only encoders of one family are compared:
ranks of contrastive and masked features say nothing about each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analyse import invariance
from ..config import Config, Paths
from ..evaluate import alpha_req, knn, rankme, tolerance, uniformity
from ..stages.seeds import Images
from . import _charts, _common, _history, _lab, _parts, _worse, alignment
from ._common import Claim, Study

RULES = 1  # raise it when a row would be measured differently
TARGET = "knn"
IMAGES, DRAWN = 256, 8  # seen through augmentation; views of each
MARKS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # shares of a training
DRAWS = 200  # of the bootstrap over encoders
SOURCES = {
    "rankme": "arXiv 2210.02885",
    "lidar": "arXiv 2312.04000",
    "alpha_req": "arXiv 2202.05808",
    "alignment": "arXiv 2005.10242",
    "uniformity": "arXiv 2005.10242",
    "tolerance": "arXiv 2012.09740",
}
# What is better by its paper: more, less, or nearer to one.
TURN = {"alignment": -1, "uniformity": -1}
OVER = {"training": "over training", "encoders": "over encoders"}


def run(cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Measure encoders of one method at several times and with several settings.

    Raises:
        HeadwaterError: a set that is not there.
    """
    rows: list[dict[str, Any]] = []
    methods = {"contrast": cfg.study.method, "masked": cfg.study.masked[0]}
    with _lab.opened("label-free", cfg, paths, quick) as lab:
        for set_, folder in lab.sets():
            whole = _lab.images(folder, lab)
            for seed in lab.seeds:
                facts = {"set": set_, "seed": seed}
                for family, method in methods.items():
                    training = lab.training(folder, method, seed)
                    about = facts | {"axis": "training", "family": family}
                    rows += _training(lab, about, training, whole)
                for name, training in _encoders(lab, folder, seed, quick):
                    about = facts | {"axis": "encoders", "family": "contrast", "arm": name}
                    rows.append(_encoder(lab, about, training, whole))
    return report(pd.DataFrame(rows), cfg)


def _encoders(
    lab: _lab.Lab, folder: Path, seed: int, quick: bool
) -> Iterator[tuple[str, _lab.Training]]:
    """One method with other projectors and other data: those of the other studies."""
    method = lab.cfg.study.method
    for depth in lab.cfg.study.depths:
        yield f"{depth} layers", lab.training(folder, method, seed, layers=depth)
    if quick:
        return
    train = _parts.index(folder, "train")
    for share, part in alignment.quantities(train, lab.cfg.study.quantities, seed):
        yield f"{share:g}", lab.training(_parts.write(lab.home, folder, part), method, seed)
    for name, change in _worse.KINDS.items():
        yield name, lab.training(_parts.write(lab.home, folder, train, change, name), method, seed)


def _training(
    lab: _lab.Lab, facts: dict[str, Any], training: _lab.Training, whole: Images
) -> list[dict[str, Any]]:
    """A line per mark of one training."""

    def work() -> dict[str, Any]:
        seen = _history.follow(training, MARKS, lambda m: measures(m, whole))
        return {"marks": [{"arm": f"{share:g}", **line} for share, line in seen.items()]}

    kept = lab.row(facts, [RULES, "label-free", training.key, list(MARKS)], work)
    return [kept] if "failed" in kept else [facts | line for line in kept["marks"]]


def _encoder(
    lab: _lab.Lab, facts: dict[str, Any], training: _lab.Training, whole: Images
) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        return measures(training.method, whole)

    return lab.row(facts, [RULES, "label-free", training.key], work)


def measures(method: Any, whole: Images) -> dict[str, float]:
    """Of the test images' pooled features; two need views."""
    train, test = (
        _lab.seen(method.encoder, whole, (whole.rows.labels >= 0) & (whole.split == s))
        for s in ("train", "test")
    )
    right = knn.predict(train, test.features) == test.labels
    rows = whole.known("test")
    pixels = whole.reader.take(rows[np.random.default_rng(0).permutation(len(rows))[:IMAGES]])
    view = replace(invariance.families(pixels.shape[-1])[invariance.ALL], count=DRAWN)
    views = np.stack(_lab.views_of(method.encoder, pixels, [view], seed=0), 1).astype(np.float64)
    same, _ = tolerance.cosines(test.features, test.labels)
    return {
        TARGET: float(right.mean()),
        "rankme": rankme.rankme(test.features),
        "lidar": invariance.lidar(views),
        "alpha_req": -abs(alpha_req.alpha(test.features) - 1),
        "alignment": float(invariance.alignment(views).mean()),
        "uniformity": uniformity.uniformity(test.features),
        "tolerance": same,
    }


# ---- what it says ------------------------------------------------------------------------------


def kendall(rows: pd.DataFrame, measure: str) -> float:
    """Tau-b of a measure, turned so that more is better, with accuracy; NaN if either is level."""
    live = rows[[measure, TARGET]].dropna().to_numpy(float)
    order = np.sign(live[:, None] - live[None])  # (N, N, 2): by pairs, which of the two is more
    energy = np.sqrt((order**2).sum((0, 1))).prod()
    both = TURN.get(measure, 1) * order.prod(-1).sum()
    return float(both / energy) if energy else float("nan")


def regret(rows: pd.DataFrame, measure: str) -> float:
    """Accuracy of the best encoder less that of the one that the measure would choose."""
    live = rows[[measure, TARGET]].dropna()
    if not len(live):
        return float("nan")
    value, right = (live[c].to_numpy(float) for c in (measure, TARGET))
    return float(right.max() - right[(TURN.get(measure, 1) * value).argmax()])


def spread(rows: pd.DataFrame, measure: str, draws: int = DRAWS) -> tuple[float, float]:
    """95 % bootstrap interval over encoders of the mean tau over seeds."""
    rng, parts = np.random.default_rng(0), [p for _, p in rows.groupby("seed")]
    values = []
    for _ in range(draws):
        taus = [kendall(p.iloc[rng.integers(0, len(p), len(p))], measure) for p in parts]
        known = [tau for tau in taus if np.isfinite(tau)]
        values.append(float(np.mean(known)) if known else float("nan"))
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def report(rows: pd.DataFrame, cfg: Config, draws: int = DRAWS) -> Study:
    """Claims, picture and table of the rows."""
    rows, left_out = _common.split_failed(rows, ["set", "axis", "family", "seed"])
    taus, lines, claims = [], [], []
    for (set_, axis, family), part in rows.groupby(["set", "axis", "family"], sort=False):
        where = f"{OVER[str(axis)]}, {family}"
        for measure, source in SOURCES.items():
            found = _common.by_seed(part, partial(kendall, measure=measure))
            low, high = spread(part, measure, draws)
            taus += [
                {"set": set_, "measure": measure, "seed": seed, where: tau}
                for seed, tau in found.items()
            ]
            lost = _common.by_seed(part, partial(regret, measure=measure)).mean()
            lines.append(
                {
                    "set": set_,
                    "where": where,
                    "measure": measure,
                    "tau": f"{found.mean():+.2f}",
                    "over encoders or marks": f"{low:+.2f} to {high:+.2f}",
                    "regret": f"{lost:.3f}",
                }
            )
            claims.append(_claim(source, measure, where, str(set_), found))
    s = cfg.study
    wheres = list(dict.fromkeys(str(line["where"]) for line in lines))
    return Study(
        title="Quality without labels",
        question="Which measure that needs no labels ranks encoders as nearest neighbours do?",
        design=(
            f"over training: one training of {s.method} and of {s.masked[0]} for each seed, seen "
            f"at {len(MARKS)} times. over encoders: {s.method} with other projectors, fewer images "
            "and worse images, {0:g} TFLOP each.".format(s.teraflops),
            "tau: Kendall's tau-b with the accuracy of nearest neighbours (labelled test images), "
            "turned so that more is better by the measure's paper; for alpha-ReQ, -|alpha - 1|. "
            "Its second interval is a bootstrap over encoders or times.",
            "regret: accuracy lost by taking the encoder that the measure puts first.",
            "tolerance needs labels and stands here for comparison. Families are not mixed.",
        ),
        rows=rows,
        claims=[c for c in claims if c.seeds],
        pictures={
            "label-free": _charts.bars(pd.DataFrame(taus), "measure", {w: w for w in wheres})
        },
        tables={"Kendall's tau": pd.DataFrame(lines)},
        left_out=left_out,
    )


def _claim(source: str, measure: str, where: str, set_: str, found: pd.Series) -> Claim:
    text = f"{measure} tracks accuracy {where}"
    return _common.judge(source, text, set_, "Kendall's tau", found)
