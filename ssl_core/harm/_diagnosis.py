"""What changed: hypotheses, each scored by how much of the change goes away if it is granted.

The change is how well a classifier tells the day from the reference, cross-fitted (arXiv
1610.06545): D = 2 AUC - 1 less its noise. Label shift is granted by weighting the reference to the
day's predicted classes; a new class, a fault or a slice by leaving its images out. What no
other hypothesis explains is covariate shift. A cause is named only if its score is high and the
next one's is not close; otherwise the cause is unknown, which is better than a wrong certainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Array
from . import _quality
from ._common import Vector

Mask = NDArray[np.bool_]
Names = NDArray[np.str_]
LEAST = 16  # images on a side below which nothing is said
DIMENSIONS = 32
FOLDS = 5
STRENGTH = 0.05  # scikit-learn's C, in whitened dimensions
# Standard errors of the AUC that are no change. Those of one classifier: cross-fitted scores vary
# 1.3 to 1.4 times as much (150 null days each of four sizes), so that 3.5 are 2.5 of theirs.
NOISE = 3.5
SURE, LEAD = 0.6, 0.2  # score of a cause that is named, and its distance from the next
NEIGHBOURS = 15
PART, ALL = 0.5, 0.7  # shares of the day up to which, and from which on not, it may be a new class
LONE, MET = 0.2, 0.7  # the same for reference images among the neighbours, over what is expected
PULL = 0.1  # of class weights towards 1
VALUES = 12  # values of one metadata column that are looked at
CAUSES = ("label shift", "new class", "quality fault", "confounder", "covariate shift")


@dataclass(frozen=True)
class Side:
    """N images of the reference or of the day.

    ``features`` (N, D), ``named`` (N,) classes the model gave, ``confidence`` (N,), ``quality``
    (N, 4) of ``_quality.MEASURES`` or None if there are no pixels, ``metadata`` column -> (N,).
    ``label`` (N,) is known for the reference ("" if not).
    """

    features: Array
    named: Names
    confidence: Vector
    quality: Vector | None = None
    metadata: Mapping[str, Names] = field(default_factory=dict)
    label: Names | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A cause with its ``score`` in [0, 1]; ``images`` (M,) says how much each bears witness."""

    cause: str
    score: float
    evidence: dict[str, Any]
    images: Vector


@dataclass(frozen=True)
class Ground:
    """What all hypotheses share: whitened features of both sides, and the change to explain."""

    reference: Side
    current: Side
    x: Vector  # (N, K)
    y: Vector  # (M, K)
    change: float
    auc: float
    scores: Vector  # (M,) how unlike the reference each image of the day is, in [0, 1]
    reference_scores: Vector  # (N,) the same of the reference's own


# ---- the change --------------------------------------------------------------------------------


def whiten(reference: Array, current: Array) -> tuple[Vector, Vector]:
    """Leading principal components of both, scaled: (N, K) and (M, K), K <= 32."""
    from sklearn.decomposition import PCA

    pooled = np.concatenate([reference, current]).astype(np.float64)
    count = min(DIMENSIONS, pooled.shape[1], len(pooled) - 1)
    turned = PCA(count, whiten=True, svd_solver="full").fit_transform(pooled)
    live = turned.std(axis=0) > 1e-9
    return turned[: len(reference), live], turned[len(reference) :, live]


def plane(reference: Array, current: Array) -> tuple[Vector, Vector]:
    """The same without scaling, of rows of unit length: for distances."""
    from sklearn.decomposition import PCA

    pooled = np.concatenate([reference, current]).astype(np.float64)
    pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    count = min(DIMENSIONS, pooled.shape[1], len(pooled) - 1)
    turned = PCA(count, svd_solver="full").fit_transform(pooled)
    return turned[: len(reference)], turned[len(reference) :]


def told_apart(x: Vector, y: Vector, weight: Vector | None = None) -> tuple[float, float, Vector]:
    """How well x (N, K) and y (M, K) are told apart: D in [0, 1], AUC, and scores (N + M,).

    ``weight`` (N,) re-weights x. The noise is the standard error of an AUC without difference,
    at the weights' effective sample size.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    w = np.ones(len(x)) if weight is None else weight
    keep = w > 0
    rows = np.concatenate([x[keep], y])
    side = np.r_[np.zeros(int(keep.sum())), np.ones(len(y))]
    weights = np.r_[w[keep] / w.sum() * len(y), np.ones(len(y))]  # both sides count alike
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LogisticRegression(C=STRENGTH, max_iter=500)
    found = cross_val_predict(
        model, rows, side, cv=folds, params={"sample_weight": weights}, method="predict_proba"
    )[:, 1]
    auc = float(roc_auc_score(side, found, sample_weight=weights))
    n, m = float(w.sum() ** 2 / (w**2).sum()), len(y)
    error = ((n + m + 1) / (12 * n * m)) ** 0.5
    scores = np.full(len(x) + len(y), np.nan)
    scores[np.r_[keep, np.ones(len(y), bool)]] = found
    return max(0.0, 2 * (auc - 0.5 - error)), auc, scores


def significant(auc: float, n: int, m: int) -> bool:
    """Whether an AUC is beyond chance."""
    return bool(auc - 0.5 > NOISE * ((n + m + 1) / (12 * n * m)) ** 0.5)


def ground(reference: Side, current: Side) -> Ground:
    """Measure the change."""
    x, y = whiten(reference.features, current.features)
    change, auc, scores = told_apart(x, y)
    return Ground(reference, current, x, y, change, auc, scores[len(x) :], scores[: len(x)])


def explained(g: Ground, left_out: Mask) -> float:
    """Share of the change that goes when the day's images ``left_out`` (M,) go.

    Where hardly any image remains, the share that went.
    """
    if int((~left_out).sum()) < LEAST:
        return float(left_out.mean())
    rest, _, _ = told_apart(g.x, g.y[~left_out])
    return float(np.clip(1 - rest / max(g.change, 1e-9), 0.0, 1.0))


# ---- the hypotheses ----------------------------------------------------------------------------


def class_weights(reference: Side, current: Side) -> tuple[Vector, Mask]:
    """Weights (N,) that give the reference the day's classes, and which images they speak for.

    The day's share of each class over the reference's is what takes the reference's confusion
    matrix to the day's predictions (arXiv 1802.03916), least squares with a pull to 1 (arXiv
    1903.09734). Images (M,) named as the reference never is have no match.
    """
    from scipy.optimize import nnls

    label = reference.named if reference.label is None else reference.label
    label = np.where(label == "", reference.named, label)
    named, first = np.unique(reference.named, return_inverse=True)
    classes, true = np.unique(label, return_inverse=True)
    joint = np.zeros((len(named), len(classes)))
    np.add.at(joint, (first, true), 1 / len(label))
    matched = np.isin(current.named, named)
    said = np.searchsorted(named, current.named[matched])
    shares = np.bincount(said, minlength=len(named)) / max(1, len(said))
    pull = PULL * np.diag(joint.sum(axis=0) ** 0.5)
    system = np.concatenate([joint, pull])
    weights = nnls(system, np.concatenate([shares, pull.sum(axis=1)]))[0]
    result: Vector = weights[true]
    return result, matched


def label_shift(g: Ground) -> Hypothesis:
    """Classes come in other shares, and look as they did."""
    both = np.concatenate([g.reference.named, g.current.named])
    classes, code = np.unique(both, return_inverse=True)
    first, second = code[: len(g.x)], code[len(g.x) :]
    was = np.bincount(first, minlength=len(classes)) / len(first)
    now = np.bincount(second, minlength=len(classes)) / len(second)
    weight, matched = class_weights(g.reference, g.current)
    score, auc = 0.0, g.auc
    if int(matched.sum()) >= LEAST and weight.sum() > 0:
        rest, auc, _ = told_apart(g.x, g.y[matched], weight)
        score = float(np.clip(1 - rest / max(g.change, 1e-9), 0, 1)) * float(matched.mean())
    order = np.argsort(-np.abs(now - was), kind="stable")[:5]
    rows = [
        {"class": str(classes[i]), "share": float(now[i]), "reference": float(was[i])}
        for i in order
    ]
    moved = float(np.abs(now - was).sum() / 2)
    about = {"total_variation": moved, "auc_after_weighting": auc, "classes": rows}
    return Hypothesis("label shift", score, about, np.clip(now - was, 0, None)[second])


def excess(own: Vector, other: Vector) -> float:
    """Largest share by which ``own`` (M,) exceeds ``other`` above some value (Kolmogorov)."""
    order = np.sort(other)
    above = 1 - np.searchsorted(order, np.sort(own), side="left") / len(order)
    return float((1 - np.arange(len(own)) / len(own) - above).max())


def _away(points: Vector, to: Vector, own: bool = False) -> Vector:
    """Distance (N,) to the nearest row of ``to``; ``own``: of the others among the same rows."""
    from sklearn.neighbors import NearestNeighbors

    found: Vector = NearestNeighbors(n_neighbors=1 + own).fit(to).kneighbors(points)[0][:, -1]
    return found


def _spread(points: Vector, names: Names) -> float:
    """Median distance to the mean of the rows of the same name."""
    parts = [points[names == n] for n in np.unique(names)]
    away = [np.linalg.norm(p - p.mean(axis=0), axis=1) for p in parts if len(p) > 2]
    return float(np.median(np.concatenate(away))) if away else 0.0


def new_class(g: Ground) -> Hypothesis:
    """Part of the day is unlike all that was known, and alike among itself; the rest is as ever."""
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestNeighbors

    share = excess(g.scores, g.reference_scores)
    odd = np.zeros(len(g.y), np.bool_)
    odd[np.argsort(-g.scores, kind="stable")[: round(share * len(g.y))]] = True
    if int(odd.sum()) < NEIGHBOURS // 2:
        return Hypothesis("new class", 0.0, {"share": share}, np.zeros(len(g.y)))
    x, y = plane(g.reference.features, g.current.features)
    both = np.concatenate([x, y])
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(both).kneighbors(y[odd])[1][:, 1:]
    met = float((near < len(x)).mean()) / (len(x) / len(both))  # 1: as much reference as overall
    far = float(
        roc_auc_score(
            np.r_[np.zeros(len(x)), np.ones(int(odd.sum()))],
            np.r_[_away(x, x, own=True), _away(y[odd], x)],
        )
    )
    known = g.reference.named if g.reference.label is None else g.reference.label
    one = np.full(len(both), "")
    whole, tight = _spread(x, one[: len(x)]), _spread(x, known)
    own = _spread(y[odd], one[: int(odd.sum())])
    coherent = float(np.clip((whole - own) / max(whole - tight, 1e-9), 0, 1))
    goes = explained(g, odd)
    about = {
        "share": share,
        "reference_among_neighbours": met,
        "distance_auc": far,
        "coherence": coherent,
        "explained": goes,
        "confidence": float(g.current.confidence[odd].mean()),
        "reference_confidence": float(g.reference.confidence.mean()),
    }
    part = float(np.clip((ALL - share) / (ALL - PART), 0, 1))
    lone = float(np.clip((MET - met) / (MET - LONE), 0, 1))
    score = goes * coherent * part * lone
    return Hypothesis("new class", score, about, g.scores * odd)


def quality_fault(g: Ground) -> Hypothesis:
    """Images are darker, flatter or less sharp than the reference ever was."""
    was, now = g.reference.quality, g.current.quality
    if was is None or now is None or not len(was):
        return Hypothesis("quality fault", 0.0, {"pixels": "not at hand"}, np.zeros(len(g.y)))
    edge = _quality.limits(was)
    bad = _quality.faulty(now, edge)
    share = {name: float(mask.mean()) for name, mask in bad.items()}
    worst = max(share, key=lambda name: share[name])
    mask = bad[worst]
    about: dict[str, Any] = {
        "shares": share,
        "expected": _quality.TAIL,
        "limits": edge,
        "fault": worst,
    }
    column = now[:, _quality.MEASURES.index(_quality.FAULTS[worst][0])]
    depth = np.abs(column - edge[worst]) * mask
    if share[worst] < 5 * _quality.TAIL:
        return Hypothesis("quality fault", 0.0, about, depth)
    goes = explained(g, mask)
    about["explained"] = goes
    return Hypothesis("quality fault", goes, about, depth)


def confounder(g: Ground) -> Hypothesis:
    """The images of one source, or of one value of the metadata, are what changed."""
    best, images = 0.0, np.zeros(len(g.y))
    about: dict[str, Any] = {}
    for column, values in sorted(g.current.metadata.items()):
        names, count = np.unique(values[values != ""], return_counts=True)
        for name in names[np.argsort(-count, kind="stable")][:VALUES].tolist():
            mask = values == name
            if min(mask.sum(), (~mask).sum()) < LEAST:
                continue  # the rest of the day must be there to compare with
            goes = explained(g, mask)
            if goes <= best:
                continue
            other, auc, _ = told_apart(g.y[~mask], g.y[mask])  # it must differ from the rest too
            if min(goes, other) > best:
                best, images = min(goes, other), g.scores * mask
                about = {"column": column, "value": name, "share": float(mask.mean())}
                about |= {"explained": goes, "auc_against_the_rest": auc}
    return Hypothesis("confounder", best, about, images)


def covariate(g: Ground, others: list[Hypothesis]) -> Hypothesis:
    """What none of the others explains."""
    left = 1 - max((h.score for h in others), default=0.0)
    about = {"auc": g.auc, "unexplained": left}
    return Hypothesis("covariate shift", left, about, g.scores)


def diagnose(reference: Side, current: Side) -> tuple[str, Ground | None, list[Hypothesis]]:
    """The cause ("none", "unknown" or one of ``CAUSES``), and all hypotheses, best first.

    A slice does not compete with a cause: dark images of one camera are a fault *there*. It is
    the cause where the images there differ in no way that has a name, or look like a new class:
    no class would come from just one place.
    """
    if min(len(reference.features), len(current.features)) < LEAST:
        return "unknown", None, []
    g = ground(reference, current)
    if not significant(g.auc, len(g.x), len(g.y)):
        return "none", g, []
    named = [label_shift(g), new_class(g), quality_fault(g)]
    place = confounder(g)
    rest = covariate(g, named)
    rivals = sorted([*named, rest], key=lambda h: -h.score)
    every = sorted([*rivals, place], key=lambda h: -h.score)
    first, second = rivals[0], rivals[1]
    if first.cause in ("new class", "covariate shift") and place.score >= SURE:
        return "confounder", g, every
    if first.score < SURE or first.score - second.score < LEAD:
        return "unknown", g, every
    return first.cause, g, every
