"""What the projector is for (arXiv 2206.13378, 2212.11491, 2110.09348, 2002.05709).

Probes at every cut from the backbone's blocks to the projector's output, invariance to each
augmentation before and after it, and the part of the representation that it reads.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import augment, models
from ..analyse import invariance, layerwise
from ..analyse._subject import Subject
from ..config import Config, Paths
from ..evaluate import linear, rankme
from ..stages.seeds import Images
from ..types import Array
from . import _charts, _common, _lab, _subspace
from ._common import Claim, Study

RULES = 1  # raise it when a row would be measured differently
ALIGNED = "supcon"  # a pretext that is the task itself
Seen = dict[str, dict[str, Array]]  # augmentation -> cut -> features (n, q, D)
IMAGES, DRAWN = 256, 4  # for invariance; augmentations of each
PARAMETERS = 512  # images from which an augmentation's parameters are regressed, and as many tests
HALF = 0.5
TRAINED = ("crop", "flip", "brightness_contrast", "colour", "grey")  # others: not by SimCLR


def run(cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Projectors of several depths, and one of a method whose pretext is the task.

    Raises:
        HeadwaterError: a set that is not there, or a method without a projector.
    """
    s = cfg.study
    depths = s.depths[:: max(1, len(s.depths) - 1)] if quick else s.depths
    arms = [(s.method, depth) for depth in depths] + [(ALIGNED, max(depths))]
    rows = []
    with _lab.opened("projector", cfg, paths, quick) as lab:
        for set_, folder in lab.sets():
            whole = _lab.images(folder, lab)
            for seed in lab.seeds:
                for method, depth in arms:
                    facts = {"set": set_, "method": method, "depth": depth, "seed": seed}
                    rows += _cell(lab, facts, folder, whole)
    return report(pd.DataFrame(rows), cfg, arms)


def _cell(
    lab: _lab.Lab, facts: dict[str, Any], folder: Path, whole: Images
) -> list[dict[str, Any]]:
    """A line per cut of one training."""
    training = lab.training(folder, facts["method"], facts["seed"], layers=facts["depth"])

    def work() -> dict[str, Any]:
        method = training.method
        subject = lab.subject(training.encoder, whole)
        seen = _augmented(method, whole.reader.take(_some(whole, IMAGES)))
        return {
            "cuts": _cuts(method, subject, whole, seen),
            **_read(method, subject, whole, seen),
            "steps": training.steps,
        }

    kept = lab.row(facts, [RULES, "projector", training.key], work)
    if "failed" in kept:
        return [kept]
    own = {k: v for k, v in kept.items() if k != "cuts"}
    return [facts | cut | (own if cut["cut"] == "h" else {}) for cut in kept["cuts"]]


def steps_of(projector: nn.Sequential) -> list[nn.Sequential]:
    """A projector's layers, each with the norm and the activation after it."""
    starts = [i for i, part in enumerate(projector) if isinstance(part, nn.Linear)]
    return [projector[a:b] for a, b in pairwise([*starts, len(projector)])]


def _onward(projector: nn.Sequential, h: Array) -> dict[str, Array]:
    """Cut -> features, from h on: h, p1 ... z; h alone without a projector."""
    found = {"h": h}
    layers = steps_of(projector)
    for number, layer in enumerate(layers, 1):
        name = "z" if number == len(layers) else f"p{number}"
        found[name] = _lab.through(layer, found[next(reversed(found))])
    return found


def _cuts(method: Any, subject: Subject, whole: Images, seen: Seen) -> list[dict[str, Any]]:
    """Probes at every cut; from h on also invariance and what is known of the augmentation."""
    rows = np.arange(len(whole.rows))
    layers = layerwise.features(subject, rows)
    h = layers.pop(layerwise.OUTPUT)
    blocks = {f"block {name}": f for name, f in layers.items() if name != "0"}
    del blocks[next(reversed(blocks))]  # the last one is h but for a norm
    after = _onward(method.projector, h)
    places = {name: i - len(blocks) for i, name in enumerate([*blocks, *after])}
    known = _parameters(method, whole)
    found = []
    for name, features in {**blocks, **after}.items():
        line: dict[str, Any] = {"cut": name, "place": places[name]}
        train, test = whole.sets(features)
        line |= _lab.accuracies(train, test)
        line["rank"] = rankme.rankme(test.features - test.features.mean(0))
        if name in after:
            line |= {f"rho_{kind}": rho(f[name]) for kind, f in seen.items()}
            line["rho"] = float(np.mean([line[f"rho_{kind}"] for kind in TRAINED]))
            line["jitter_r2"] = known[name]
        found.append(line)
    return found


def _some(whole: Images, count: int, skip: int = 0) -> Any:
    """Rows drawn by a fixed seed."""
    order = np.random.default_rng(0).permutation(len(whole.rows))
    return np.sort(order[skip : skip + count])


def _augmented(method: Any, pixels: torch.Tensor) -> Seen:
    """Augmentation -> cut -> features (n, q, D)."""
    found = {}
    for kind, view in invariance.families(pixels.shape[-1]).items():
        parts = _lab.views_of(method.encoder, pixels, [replace(view, count=DRAWN)], seed=0)
        each = [_onward(method.projector, part) for part in parts]
        found[kind] = {cut: np.stack([e[cut] for e in each], 1) for cut in each[0]}
    return found


def rho(features: Any) -> float:
    """Share of variance between images, not their views, of (n, q, D)."""
    x = np.asarray(features, np.float64)
    return float(invariance.invariance(x, np.full(len(x), ""))[0])  # one group: no interval


def _parameters(method: Any, whole: Images) -> dict[str, float]:
    """Cut -> R^2 of the four strengths of colour jitter, regressed from features."""
    still = invariance.families(whole.reader.side)["flip"]
    view = replace(still, flip=0.0, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=1.0)
    count = min(PARAMETERS, len(whole.rows) // 2)
    sides = []
    for number in (0, 1):
        pixels = whole.reader.take(_some(whole, count, number * count))
        drawn = augment.draw(view, count, pixels.shape[-2:], torch.Generator().manual_seed(number))
        x = augment.apply(pixels, view, drawn)
        mean, std = (torch.tensor(c).view(-1, 1, 1) for c in models.normalisation(x.shape[1]))
        h = _lab.pooled(method.encoder, (x - mean) / std)
        sides.append((_onward(method.projector, h), drawn.factors.double().numpy()))
    (train, targets), (test, truth) = sides
    return {cut: _subspace.regression(train[cut], targets, test[cut], truth) for cut in train}


def _read(method: Any, subject: Subject, whole: Images, seen: Seen) -> dict[str, float]:
    """The half of directions that the projector reads most, beside the other half."""
    if not len(method.projector):
        return {}
    h = subject.rows.features
    rows = _some(whole, IMAGES)
    method.projector.eval()
    values, vectors = _subspace.directions(_subspace.reading(method.projector, h[rows]))
    half = round(HALF * len(values))
    parts = {"most": vectors[:, :half], "least": vectors[:, half:]}
    spread = np.asarray(h - h.mean(0), np.float64)
    found = {
        "read_rank": _subspace.effective_rank(values),
        "read_enough": float(_subspace.enough(values)),
    }
    for name, turn in parts.items():
        inside = (h @ turn).astype(np.float32)
        found[f"read_{name}_variance"] = float(((spread @ turn) ** 2).sum() / (spread**2).sum())
        found[f"read_{name}_rho"] = float(
            np.mean([rho(seen[kind]["h"] @ turn) for kind in TRAINED])
        )
        train, test = whole.sets(inside)
        right = linear.predict(train, test.features) == test.labels
        found[f"read_{name}_linear"] = float(right.mean())
    return found


# ---- what it says ------------------------------------------------------------------------------


def report(rows: pd.DataFrame, cfg: Config, arms: list[tuple[str, int]]) -> Study:
    """Claims, pictures and tables of the rows."""
    rows, left_out = _common.split_failed(rows, ["set", "method", "depth", "seed"])
    rows["arm"] = rows["method"] + ", " + rows["depth"].astype(str) + " layers"
    deepest = max(depth for _, depth in arms)
    claims = [
        c for set_, part in rows.groupby("set", sort=False) for c in _claims(set_, part, deepest)
    ]
    s = cfg.study
    measures = ["linear", "knn", "rank", "rho", "jitter_r2"]
    ends = rows[rows["cut"].isin(["h", "z"])]
    read = rows[(rows["cut"] == "h") & (rows["depth"] > 0)]
    return Study(
        title="The projector",
        question="Does a projector help, what is lost in it, and what does it read?",
        design=(
            f"{s.method} with projectors of {', '.join(map(str, s.depths))} layers and {ALIGNED} "
            f"with {deepest}, {s.teraflops:g} TFLOP each.",
            "Cuts: the backbone's blocks, h (its output), each layer of the projector, z (its "
            "output). Without a projector the loss acts on h.",
            "rank: effective rank of centred test features. rho: share of variance that "
            "augmentation does not explain, mean over crop, flip, brightness, colour and grey. "
            "jitter_r2: R^2 of the strengths of colour jitter, regressed from features.",
            "read_*: directions of h by how strongly the projector's mean Jacobian reads them; "
            "most and least are its halves; enough is how many hold 99 % of the squares.",
        ),
        rows=rows,
        claims=claims,
        pictures={"projector": _picture(rows), "invariance": _invariance(ends, s.method)},
        tables={
            **{
                f"{set_}": _common.means(part, ["arm", "cut"], measures)
                for set_, part in ends.groupby("set", sort=False)
            },
            "What is read of h": _common.means(
                read, ["set", "arm"], [str(c) for c in rows if str(c).startswith("read_")]
            ),
        },
        left_out=left_out,
    )


def _claims(set_: Any, rows: pd.DataFrame, deepest: int) -> list[Claim]:
    own = rows["method"] != ALIGNED
    h, z, deep = rows["cut"] == "h", rows["cut"] == "z", rows["depth"] == deepest
    headed = own & (rows["depth"] > 0)
    name = str(set_)

    def says(source: str, text: str, measured: str, values: pd.Series) -> Claim:
        return _common.judge(source, text, name, measured, values)

    def less(measure: str, more: Any, other: Any) -> pd.Series:
        return _common.difference(rows, measure, more, other)

    lost = less("linear", own & deep & h, own & deep & z)
    aligned = less("linear", ~own & h, ~own & z)
    read = rows[headed & h].groupby("seed")[["read_most_rho", "read_least_rho"]].mean()
    claims = [
        says(
            "arXiv 2206.13378",
            "A linear probe is better before the projector than after it",
            "accuracy at h less at z",
            less("linear", headed & h, headed & z),
        ),
        says(
            "arXiv 2206.13378",
            "Less is lost in the projector where the pretext is the task itself",
            f"loss from h to z without labels less that of {ALIGNED}",
            (lost - aligned).dropna(),
        ),
        says(
            "arXiv 2002.05709",
            "The representation is better with a projector than without",
            f"linear probe at h, {deepest} layers less none",
            less("linear", own & h & deep, own & h & (rows["depth"] == 0)),
        ),
        says(
            "arXiv 2002.05709",
            "h keeps more of what an augmentation did than z",
            "R^2 of the jitter's strengths at h less at z",
            less("jitter_r2", headed & h, headed & z),
        ),
        says(
            "arXiv 2212.11491",
            "The projector's output is more invariant than the representation",
            "rho at z less at h",
            less("rho", headed & z, headed & h),
        ),
        says(
            "arXiv 2212.11491",
            "The loss acts in the subspace that the projector reads: invariance is there",
            "rho in the half of h that is read most less in the other",
            read["read_most_rho"] - read["read_least_rho"],
        ),
        says(
            "arXiv 2110.09348",
            "Without a projector the representation loses dimensions",
            f"effective rank of h, {deepest} layers less none",
            less("rank", own & h & deep, own & h & (rows["depth"] == 0)),
        ),
    ]
    if {1, deepest} <= set(rows["depth"]) and deepest > 1:
        claims.append(
            says(
                "arXiv 2002.05709",
                "A projector with hidden layers is better than a linear one",
                f"linear probe at h, {deepest} layers less 1",
                less("linear", own & h & deep, own & h & (rows["depth"] == 1)),
            )
        )
    return [c for c in claims if c.seeds]


def _picture(rows: pd.DataFrame) -> bytes:
    panels = {
        "linear": "linear probe",
        "knn": "kNN",
        "rank": "effective rank",
        "rho": "invariance (rho)",
        "jitter_r2": "R² of the jitter",
    }
    shown = rows.rename(columns={"place": "layers after the backbone"})
    return _charts.lines(shown, "layers after the backbone", panels, "arm")


def _invariance(ends: pd.DataFrame, method: str) -> bytes:
    """Each augmentation before and after the projector."""
    own = ends[(ends["method"] == method) & (ends["depth"] > 0)]
    panels = {c: c[4:].replace("_", " ") for c in map(str, ends) if c.startswith("rho_")}
    return _charts.bars(own.assign(at=own["arm"] + ": " + own["cut"]), "at", panels)
