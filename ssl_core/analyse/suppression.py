"""Feature suppression: of several features in one image, which are left (arXiv 2011.02803).

A handwritten digit and a coloured silhouette, each alone and both in one image, drawn here at
random and independent of each other. Linear probes read digit, shape and colour. ``kept`` is what
of a feature's score (0 chance, 1 always right) is left when the other object is there too;
``digit_share`` says who won: the digit's score over the digit's and the silhouette's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import Analyse
from ..evaluate._common import Interval
from . import _pictures, _scenes, _stats
from ._subject import NAN, Finding, Row, Subject, row

IMAGES, LEARNT = 600, 400
FACTORS = {"digit": 10, "shape": len(_scenes.SHAPES), "colour": 6}
SIZE = 0.21  # half an object's height, of the side
SCENES = {"digit_alone": ("digit",), "object_alone": ("shape",), "together": ("digit", "shape")}


def colours(channels: int) -> NDArray[np.float64]:
    """Six colours (6, C): hues for three channels, else spread levels."""
    if channels == 3:
        table = [(220, 40, 40), (230, 190, 40), (50, 170, 70), (50, 180, 200), (60, 80, 220)]
        return np.array([*table, (200, 70, 190)], np.float64)
    levels = np.linspace(30, 200, FACTORS["colour"])
    return levels[:, None].repeat(channels, 1)


def factors(count: int, rng: _scenes.Rng) -> dict[str, NDArray[np.int64]]:
    """What is in each image: independent and even."""
    return {name: rng.integers(0, n, count) for name, n in FACTORS.items()}


def scenes(
    drawn: Mapping[str, NDArray[np.int64]],
    parts: tuple[str, ...],
    side: int,
    channels: int,
    seed: int,
) -> Tensor:
    """uint8 (N, C, S, S): a digit in one half and a silhouette in the other, or one of them.

    Places do not depend on ``parts``, so that an object alone lies where it lies in company.
    """
    rng = np.random.default_rng(seed)
    pixels, names = _scenes.digits()
    shapes, inks = list(_scenes.SHAPES), colours(channels)
    images = []
    for digit, shape, colour in zip(*(drawn[k] for k in FACTORS), strict=True):
        image = np.full((channels, side, side), 1.0) * rng.uniform(215, 250)
        halves = rng.permutation([0.27, 0.73])
        up = rng.uniform(0.3, 0.7, 2)
        chosen = rng.choice(np.flatnonzero(names == digit))
        if "shape" in parts:
            turn = rng.normal(0, 0.2)
            inside = _scenes.silhouette(shapes[shape], side, (up[1], halves[1]), SIZE, turn)
            image[:, inside] = inks[colour][:, None]
        else:
            rng.normal()  # the same draws for the images to come
        if "digit" in parts:
            image = _scenes.pasted(image, pixels[chosen], (up[0], halves[0]), SIZE)
        images.append(image)
    return _scenes.stacked(images)


def score(accuracy: float, classes: int) -> float:
    """0 at chance, 1 where all is right; may fall below 0."""
    return (accuracy - 1 / classes) / (1 - 1 / classes)


Right = dict[tuple[str, str], NDArray[np.bool_]]  # by scene and factor, of the images asked


def _probe(subject: Subject, drawn: Mapping[str, NDArray[np.int64]]) -> Right:
    """Whether a probe reads each factor where it is shown."""
    side, channels = subject.source.side, subject.source.channels
    right: Right = {}
    for scene, parts in SCENES.items():
        images = scenes(drawn, parts, side, channels, subject.seed)
        features = subject.features(images)
        for name, labels in drawn.items():
            if ("digit" if name == "digit" else "shape") in parts:
                told = _stats.probed(features[:LEARNT], labels[:LEARNT], features[LEARNT:])
                right[scene, name] = told == labels[LEARNT:]
    return right


def kept(alone: NDArray[np.bool_], together: NDArray[np.bool_], classes: int) -> Interval:
    """Score in company over score alone, of the same images (N,); NaN where there was none."""
    each = np.arange(len(alone)).astype(str)
    if score(float(alone.mean()), classes) <= 0:
        return NAN, NAN, NAN
    return _stats.ratio(together - 1 / classes, alone - 1 / classes, each)


def _summary(right: Right) -> list[Row]:
    """What each factor keeps in company, and the digit's share."""
    rows, scores, n = [], {}, IMAGES - LEARNT
    for name, classes in FACTORS.items():
        alone = right["digit_alone" if name == "digit" else "object_alone", name]
        value, low, high = kept(alone, right["together", name], classes)
        rows.append(row(f"{name}_kept", value, n, "together", (low, high)))
        scores[name] = max(score(float(right["together", name].mean()), classes), 0.0)
    both = scores["digit"] + scores["shape"]
    rows.append(row("digit_share", scores["digit"] / both if both else NAN, n, "together"))
    return rows


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Accuracy of digit, shape and colour, alone and in company."""
    drawn = factors(IMAGES, np.random.default_rng(subject.seed))
    right = _probe(subject, drawn)
    some = {name: labels[: _pictures.SAMPLES] for name, labels in drawn.items()}
    size = (subject.source.side, subject.source.channels, subject.seed)
    cells = [[_pictures.rgb(i) for i in scenes(some, p, *size)] for p in SCENES.values()]
    bars: dict[str, dict[str, float]] = {}
    for (scene, name), own in right.items():
        place = "together" if scene == "together" else "alone"
        bars.setdefault(name, {})[place] = float(own.mean())
    pictures = {
        "suppression": _pictures.bars(bars, "Read by a linear probe", "accuracy"),
        "suppression_samples": _pictures.sheet(cells),
    }
    rows = [_stats.share(f"{name}_accuracy", own, scene) for (scene, name), own in right.items()]
    return Finding(rows + _summary(right), pictures)
