"""Which temperature, and does the number of classes matter (arXiv 2012.09740, 2002.05709)?

Training images are drawn from C classes, equally many of each, so that neither their number nor
the steps differ between C. Classes are drawn anew for each seed. Probes use all labelled training
images of these classes and are scored on their test images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analyse import invariance
from ..config import Config, Paths
from ..evaluate import tolerance, uniformity
from ..stages.seeds import Images
from . import _charts, _common, _lab, _pairs, _parts
from ._common import Claim, Study

RULES = 1  # raise it when a row would be measured differently
BATCHES = 8  # of training images, on which the gradient is looked at
MEASURES = ["knn", "linear", "uniformity", "tolerance", "alignment", "hardest", "own_class"]
ACCURACY = "accuracy_chance"
PAPER = "arXiv 2012.09740"


def run(cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Sweep temperature by number of classes on every set.

    Raises:
        HeadwaterError: a set that is not there, or a method without a temperature.
    """
    s = cfg.study
    counts = s.classes[:: max(1, len(s.classes) - 1)] if quick else s.classes
    temperatures = s.temperatures[::2] if quick else s.temperatures
    rows, left_out = [], []
    with _lab.opened("temperature", cfg, paths, quick) as lab:
        for set_, folder in lab.sets():
            whole = _lab.images(folder, lab)
            table = _parts.index(folder)
            for classes in counts:
                for seed in lab.seeds:
                    part = _parts.of_classes(table, classes, s.images, seed)
                    if not len(part):
                        if not seed:
                            left_out.append(
                                f"{set_}: fewer than {classes} classes have "
                                f"{-(-s.images // classes)} training images."
                            )
                        continue
                    small = _parts.write(lab.home, folder, part)
                    for t in temperatures:
                        facts = {"set": set_, "classes": classes, "temperature": t, "seed": seed}
                        rows.append(_cell(lab, facts, folder, small, whole))
    return report(pd.DataFrame(rows), cfg, left_out)


def _cell(
    lab: _lab.Lab, facts: dict[str, Any], folder: Path, small: Path, whole: Images
) -> dict[str, Any]:
    """One training and what is measured of it."""
    training = lab.training(
        small, lab.cfg.study.method, facts["seed"], temperature=facts["temperature"]
    )

    def work() -> dict[str, Any]:
        found = _probes(training, whole) | _geometry(training, whole)
        found |= _gradient(training, facts["temperature"])
        return found | {"steps": training.steps}

    return lab.row(facts, [RULES, "temperature", training.key, str(folder.name)], work)


def _known(training: _lab.Training, whole: Images) -> np.ndarray[Any, Any]:
    """Mask (N,) of the labelled images of the classes that were trained on."""
    names = _parts.index(training.folder, "train")["label"].unique()
    codes = [whole.rows.classes.index(name) for name in names]
    mask: np.ndarray[Any, Any] = np.isin(whole.rows.labels, codes)
    return mask


def _probes(training: _lab.Training, whole: Images) -> dict[str, float]:
    known = _known(training, whole)
    sets = (known & (whole.split == s) for s in ("train", "test"))
    found = _lab.accuracies(*(_lab.seen(training.encoder, whole, mask) for mask in sets))
    return found | {ACCURACY: (found["knn_chance"] + found["linear_chance"]) / 2}


def _geometry(training: _lab.Training, whole: Images) -> dict[str, float]:
    """Of the projections, which the loss acts on, for the test images of these classes."""
    rows = np.flatnonzero(_known(training, whole) & (whole.split == "test"))
    pixels = whole.reader.take(rows)
    method = training.method
    a, b = (
        _lab.through(method.projector, f)
        for f in _lab.views_of(method.encoder, pixels, method.views, seed=0)
    )
    same, _ = tolerance.cosines(a, whole.rows.labels[rows])
    return {
        "uniformity": uniformity.uniformity(a),
        "tolerance": same,
        "alignment": float(invariance.alignment(np.stack([a, b], 1)).mean()),
    }


def _gradient(training: _lab.Training, temperature: float) -> dict[str, float]:
    """Where the loss pushes, at the end of training, on batches as in training."""
    images = _lab.images(training.folder, training.lab)
    size, method = training.cfg.pretrain.batch_size, training.method
    hardest, own = [], []
    for number in range(BATCHES):
        rows = np.random.default_rng(number).permutation(len(images.rows))[:size]
        views = _lab.views_of(method.encoder, images.reader.take(rows), method.views, number)
        a, b = (_lab.through(method.projector, v) for v in views)
        pushed = _pairs.pushes(a, b, temperature)
        hardest.append(_pairs.hardest_share(pushed))
        own.append(_pairs.class_excess(pushed, images.rows.labels[rows]))
    return {"hardest": float(np.mean(hardest)), "own_class": float(np.nanmean(own))}


# ---- what it says ------------------------------------------------------------------------------


def report(rows: pd.DataFrame, cfg: Config, left_out: list[str]) -> Study:
    """Claims, picture and table of the rows."""
    good, failed = _common.split_failed(rows, ["set", "classes", "temperature", "seed"])
    claims = [c for set_, part in good.groupby("set", sort=False) for c in _claims(set_, part)]
    s = cfg.study
    return Study(
        title="Temperature and the number of classes",
        question="Does a smaller temperature spread features and hit hard negatives, is a middle "
        "one best, and do few classes want a larger one?",
        design=(
            f"{s.method}, {s.images} training images from C classes, {s.teraflops:g} TFLOP each, "
            "equal steps; classes drawn anew for each seed.",
            "knn and linear: accuracy on the test images of these classes. Claims use their mean "
            "without what guessing gets right, (a - 1/C) / (1 - 1/C).",
            "uniformity, tolerance, alignment: of the projections of test images. hardest: share "
            "of an anchor's push P_ij/t that goes to the hardest tenth of its negatives (even: "
            "0.1). own_class: push on negatives of the anchor's class over an even push's.",
        ),
        rows=good,
        claims=claims,
        pictures={"temperature": _picture(good)},
        tables={
            f"{set_}, {classes} classes": _common.means(part, ["temperature"], MEASURES)
            for (set_, classes), part in good.groupby(["set", "classes"], sort=False)
        },
        left_out=(*left_out, *failed),
    )


def _claims(set_: Any, rows: pd.DataFrame) -> list[Claim]:
    low, high = (rows["temperature"] == t for t in (rows["temperature"].agg(f) for f in ENDS))
    ends = [f"temperature {rows['temperature'].agg(f):g}" for f in ENDS]
    name = str(set_)

    def says(text: str, measured: str, values: pd.Series, source: str = PAPER) -> Claim:
        return _common.judge(source, text, name, measured, values)

    claims = [
        says(
            "A small temperature spends the gradient on the hardest negatives",
            f"share on the hardest tenth, {ends[0]} less {ends[1]}",
            _common.difference(rows, "hardest", low, high),
        ),
        says(
            "A small temperature makes features more uniform",
            f"uniformity (lower is more even), {ends[1]} less {ends[0]}",
            _common.difference(rows, "uniformity", high, low),
        ),
        says(
            "A large temperature keeps images of one class together (tolerance)",
            f"mean cosine within classes, {ends[1]} less {ends[0]}",
            _common.difference(rows, "tolerance", high, low),
        ),
        says(
            "Accuracy is best at a middle temperature",
            "curvature of accuracy over log temperature, sign turned",
            _common.by_seed(rows, lambda r: -_over(r, ACCURACY, 2)),
        ),
    ]
    if rows["classes"].nunique() > 1:
        claims.append(
            says(
                "Fewer classes want a larger temperature",
                "fall of the slope of accuracy over log temperature, per doubling of classes",
                _common.by_seed(rows, _fall),
                "a blog's claim; mechanism: arXiv 2012.09740",
            )
        )
    return claims


ENDS = ("min", "max")


def _over(rows: pd.DataFrame, measure: str, degree: int) -> float:
    """Leading coefficient over log temperature, of the mean over classes."""
    curve = rows.groupby("temperature")[measure].mean()
    return _common.fitted(np.log(curve.index.to_numpy(float)), curve, degree)


def _fall(rows: pd.DataFrame) -> float:
    slopes = {c: _over(part, ACCURACY, 1) for c, part in rows.groupby("classes")}
    return -_common.fitted(np.log2(np.array(list(slopes), float)), list(slopes.values()))


def best(rows: pd.DataFrame, draws: int = 1000) -> pd.DataFrame:
    """The best temperature by set and number of classes, with a bootstrap interval over seeds."""
    rng, lines = np.random.default_rng(0), []
    for (set_, classes), part in rows.groupby(["set", "classes"], sort=False):
        grid = part.pivot_table(ACCURACY, "seed", "temperature")  # (seeds, temperatures)
        drawn = rng.integers(0, len(grid), (draws, len(grid)))
        at = grid.columns.to_numpy(float)
        found = at[np.nanargmax(grid.to_numpy()[drawn].mean(1), axis=1)]
        low, high = np.quantile(found, [0.025, 0.975])
        top = at[int(np.nanargmax(grid.mean()))]
        lines.append({"set": set_, "classes": classes, "best": top, "low": low, "high": high})
    return pd.DataFrame(lines)


def _picture(rows: pd.DataFrame) -> bytes:
    panels = {
        ACCURACY: "accuracy over guessing",
        "uniformity": "uniformity (lower: more even)",
        "tolerance": "tolerance (cosine in class)",
        "hardest": "gradient on hardest tenth",
        "own_class": "push on own class over even",
    }
    return _charts.lines(rows, "temperature", panels, "classes", log=True)
