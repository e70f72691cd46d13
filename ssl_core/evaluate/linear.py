"""Linear probe: multinomial logistic regression on frozen, standardised features.

The minimum is scikit-learn's (tests/test_evaluate.py), found in a rotated and scaled basis in
which L-BFGS needs a third of the steps, in float32: 1 s where scikit-learn took 15 s (3,700 x
192 features, 99 classes, five penalties, one core).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Evaluate
from ..types import Array, Embeddings, Labels
from . import _calibration, _common
from ._head import Head, softmax

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, strongest penalty first
FALLBACK = 0.1  # where there are too few groups to choose
HELD_OUT = 0.2
LEAST = 5  # groups
STEPS = 200
TOLERANCE = 1e-5  # of the gradient's largest entry, in the scaled basis
CHANGE = 1e-6  # of the loss in one step, relative; float32 can tell little less
TEMPERATURES = (0.05, 20.0)
DIRECTIONS = 512  # wider features are probed in their leading principal directions


@dataclass(frozen=True)
class Space:
    """Standardised features in the basis of their principal directions, and the way back.

    The penalty does not change under the rotation. ``turn`` (D, K) holds directions in columns,
    ``energy`` (K,) the mean square along each; K is the least of D and ``DIRECTIONS``.
    """

    mean: Array
    scale: Array
    turn: Array
    energy: Array

    def into(self, features: Array) -> Array:
        """(N, D) -> (N, K + 1), the last column is 1."""
        rotated = ((features - self.mean) / self.scale) @ self.turn
        return np.concatenate([rotated, np.ones((len(rotated), 1), np.float32)], axis=1)

    def back(self, weight: Array) -> tuple[Array, Array]:
        """(C, K + 1) -> weight (C, D) and bias (C,) for raw features."""
        plain: Array = (weight[:, :-1] @ self.turn.T) / self.scale
        return plain, weight[:, -1] - plain @ self.mean

    def start(self, head: Head | None, classes: tuple[str, ...]) -> Array:
        """Where the search begins: (C, K + 1), a head's rows by class name, zero without one."""
        out = np.zeros((len(classes), len(self.energy) + 1), np.float32)
        place = {name: i for i, name in enumerate(head.classes)} if head else {}
        for row, name in enumerate(classes):
            if head and name in place:
                weight = head.weight[place[name]]
                out[row, :-1] = (weight * self.scale) @ self.turn
                out[row, -1] = head.bias[place[name]] + weight @ self.mean
        return out


def space(features: Array) -> Space:
    """Statistics of the rows to fit on; constant dimensions are left as they are."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-6 * (1 + np.abs(mean)), scale, 1).astype(np.float32)
    x = (features - mean) / scale
    energy, turn = np.linalg.eigh(x.T @ x / len(x))  # it only guides the search: float32 will do
    return Space(mean, scale, turn[:, -DIRECTIONS:], energy[-DIRECTIONS:].clip(0))


def _objective(
    flat: NDArray[np.float64], x: Array, target: Labels, scale: Array, ridge: Array
) -> tuple[float, NDArray[np.float64]]:
    """Mean cross-entropy + penalty, and its gradient, at weights ``flat`` / ``scale``."""
    weight = flat.reshape(scale.shape).astype(np.float32) / scale
    logits = x @ weight.T  # (N, D+1) @ (D+1, C) -> (N, C)
    rows = np.arange(len(x))
    p = softmax(logits)
    loss = -np.log(np.maximum(p[rows, target], 1e-30)).mean(dtype=np.float64)
    penalty = 0.5 * float((ridge * weight**2).sum(dtype=np.float64))
    p[rows, target] -= 1
    gradient = p.T @ x / len(x) + ridge * weight
    return float(loss) + penalty, (gradient / scale).ravel().astype(np.float64)


def solve(x: Array, target: Labels, energy: Array, strength: float, start: Array) -> Array:
    """Weights (C, D + 1) that minimise sum of losses + |weight|^2 / (2 strength).

    Coordinates are divided by the root of a diagonal guess at the Hessian: the class's variance
    times the direction's energy, plus the penalty.
    """
    from scipy.optimize import minimize

    prior = np.bincount(target, minlength=len(start)) / len(x)
    variance = np.maximum(prior * (1 - prior), 1e-6)[:, None]  # (C, 1)
    ridge = np.r_[np.full(len(energy), 1 / (strength * len(x))), 0].astype(np.float32)
    scale = np.sqrt(variance * np.r_[energy, 1] + ridge).astype(np.float32)  # (C, D + 1)
    found = minimize(
        _objective,
        (start * scale).ravel(),
        (x, target, scale, ridge),
        "L-BFGS-B",
        jac=True,
        options={"maxiter": STEPS, "gtol": TOLERANCE, "ftol": CHANGE},
    )
    result: Array = found.x.reshape(scale.shape).astype(np.float32) / scale
    return result


def _held_out(groups: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Mask (N,) of a fifth of the groups, drawn by a fixed seed."""
    names, code = np.unique(groups, return_inverse=True)
    chosen = np.zeros(len(names), np.bool_)
    order = np.random.default_rng(_common.SEED).permutation(len(names))
    chosen[order[: max(1, round(HELD_OUT * len(names)))]] = True
    return chosen[code]


def temperature(logits: Array, target: Labels) -> float:
    """What to divide logits (N, C) by so that confidence fits (arXiv 1706.04599)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(logits))

    def loss(log: float) -> float:
        p = softmax(logits / np.exp(log))[rows, target]
        return -float(np.log(np.maximum(p, 1e-30)).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def choose(known: Embeddings) -> Head:
    """Penalty, temperature and accuracy on held-out groups of the labelled training rows.

    Returned as the head that was best there, fitted on the other groups. All penalties are tried:
    the accuracy of weak features may fall by chance before it rises (LOG.md). Of equally right
    ones the stronger stays.

    A class that only the held-out groups have counts as missed.
    """
    out = _held_out(known.groups)
    features, target = known.features, known.labels
    present, own = np.unique(target[~out], return_inverse=True)
    names = tuple(known.classes[i] for i in present)
    if len(np.unique(known.groups)) < LEAST or len(present) < 2:
        nothing = np.zeros((len(present), features.shape[1]), np.float32)
        return Head(nothing, nothing[:, 0], names, 1.0, {"strength": FALLBACK, "accuracy": None})
    basis = space(features[~out])
    x, test = basis.into(features[~out]), basis.into(features[out])
    start = basis.start(None, names)
    seen = np.isin(target[out], present)
    place = np.searchsorted(present, target[out][seen])
    best, best_weight, best_strength, weight = -1.0, start, FALLBACK, start
    for strength in STRENGTHS:
        weight = solve(x, own, basis.energy, strength, weight)
        right = float((present[(test @ weight.T).argmax(1)] == target[out]).mean())
        if right > best:
            best, best_weight, best_strength = right, weight, strength
    scale = temperature((test @ best_weight.T)[seen], place) if seen.any() else 1.0
    about = {"strength": best_strength, "accuracy": best}
    return Head(*basis.back(best_weight), names, scale, about)


def fit(train: Embeddings, near: Head | None = None) -> Head:
    """The probe of the labelled training rows: penalty chosen on held-out groups, then refitted.

    With ``near``, a head of similar data, its penalty and temperature are taken, and the search
    begins at its weights.

    Raises:
        HeadwaterError: labels of fewer than two classes.
    """
    known = _common.require_labels(train)
    present, target = np.unique(known.labels, return_inverse=True)
    names = tuple(known.classes[i] for i in present)
    with _common.threads(known.features.size * len(present)):
        guide = near or choose(known)
        strength, basis = float(guide.about["strength"]), space(known.features)
        x, start = basis.into(known.features), basis.start(guide, names)
        weight = solve(x, target, basis.energy, strength, start)
    about: dict[str, Any] = {
        "strength": strength,
        "images": len(known),
        "held_out_accuracy": guide.about.get("accuracy"),
    }
    return Head(*basis.back(weight), names, guide.temperature, about)


def named(head: Head, train: Embeddings, features: Array) -> Labels:
    """What a head fitted on ``train`` says: indices into ``train.classes``, (M,)."""
    present = np.unique(train.labels[train.labels >= 0])
    best: Labels = present[head.logits(features).argmax(1)]
    return best


def predict(train: Embeddings, features: Array) -> Labels:
    """Fit on the first, name rows of the second: indices into ``train.classes``, (M,)."""
    return named(fit(train), train, features)


def calibration(head: Head, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """How right the head's probabilities are, on the whole test split and by source."""
    column = {name: i for i, name in enumerate(head.classes)}
    place = np.array([column.get(name, -1) for name in test.classes], np.int64)
    p, target = head.probabilities(test.features), place[test.labels]
    found = []
    for name in ("", *np.unique(test.sources)):
        mask = (test.sources == name) | (name == "")
        groups = test.groups[mask]
        where = f"source:{name}" if name else "all"
        found += _calibration.rows(where, p[mask], target[mask], groups, cfg.bootstrap)
    return found


def rows(head: Head, train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """Accuracy by slice, and calibration, of a head that was fitted on ``train``.

    The probes of the left-out sources take its penalty: one number, which a choice of their own
    would cost four more fits each.
    """

    def again(others: Embeddings, features: Array) -> Labels:
        return named(fit(others, head), others, features)

    train, test = _common.require_labels(train), _common.labelled(test)
    found = _common.by_slice(train, test, cfg, named(head, train, test.features))
    found += _common.unseen(train, test, cfg, again)
    return found + calibration(head, test, cfg)


def run(train: Embeddings, test: Embeddings, cfg: Evaluate) -> list[_common.Row]:
    """Accuracy by slice, and calibration.

    Raises:
        HeadwaterError: training labels of fewer than two classes.
    """
    return rows(fit(train), train, test, cfg)
