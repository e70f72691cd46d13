"""Losses with labels, VICRegL's matching and the density weights, with plain loops in float64.

Nothing here imports ssl_core or torch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def _unit(x: F64) -> F64:
    return x / np.linalg.norm(x)


def supcon(views: F64, labels: I64, temperature: float) -> float:
    """arXiv 2004.11362, eq. 2 (L_out): (V, B, d) projections; a negative label is its own class."""
    z, owner = [], []
    for view in views:
        for image, row in enumerate(view):
            z.append(_unit(row))
            owner.append(image)
    terms = []
    for i in range(len(z)):
        below = sum(math.exp(z[i] @ z[a] / temperature) for a in range(len(z)) if a != i)
        logs = []
        for p in range(len(z)):
            same_image = owner[p] == owner[i]
            same_class = labels[owner[p]] >= 0 and labels[owner[p]] == labels[owner[i]]
            if p != i and (same_image or same_class):
                logs.append(math.log(math.exp(z[i] @ z[p] / temperature) / below))
        if logs:
            terms.append(-sum(logs) / len(logs))
    return sum(terms) / len(terms) if terms else 0.0


def cross_entropy(logits: F64, labels: I64, smoothing: float, balanced: bool) -> float:
    """Mean over labelled rows, or over classes of the mean over their rows."""
    by_class: dict[int, list[float]] = {}
    classes = logits.shape[1]
    for row, label in zip(logits, labels, strict=True):
        if label < 0:
            continue
        target = [smoothing / classes + (1 - smoothing) * (c == label) for c in range(classes)]
        total = sum(math.exp(x) for x in row)
        loss = -sum(t * math.log(math.exp(x) / total) for t, x in zip(target, row, strict=True))
        by_class.setdefault(int(label), []).append(loss)
    if balanced:
        return float(np.mean([np.mean(v) for v in by_class.values()]))
    return float(np.mean([x for v in by_class.values() for x in v]))


def prototype(z: F64, centres: F64, labels: I64, temperature: float, exclude_own: bool) -> float:
    """arXiv 2103.14267: softmax over unit class prototypes."""
    losses = []
    for row, label in zip(z, labels, strict=True):
        if label < 0:
            continue
        s = [_unit(row) @ _unit(c) / temperature for c in centres]
        below = sum(math.exp(x) for j, x in enumerate(s) if not (exclude_own and j == label))
        losses.append(-math.log(math.exp(s[label]) / below))
    return float(np.mean(losses))


def centres(box: list[float], rows: int, columns: int) -> list[tuple[float, float]]:
    """Where the cells of a view lie in the image: (y, x) per cell, row by row."""
    top, left, height, width, mirrored = box
    found = []
    for r in range(rows):
        for c in range(columns):
            column = columns - 1 - c if mirrored else c
            found.append((top + height * (r + 0.5) / rows, left + width * (column + 0.5) / columns))
    return found


def nearest(a: F64, b: F64, count: int) -> list[tuple[int, int]]:
    """Index pairs (in a, in b): nearest neighbour of each row of a, the ``count`` closest first."""
    found = []
    for i, x in enumerate(a):
        distances = [math.sqrt(sum((u - v) ** 2 for u, v in zip(x, y, strict=True))) for y in b]
        j = int(np.argmin(distances))
        found.append((distances[j], i, j))
    return [(i, j) for _, i, j in sorted(found)[:count]]


def _vicreg_of_matches(a: F64, b: F64, weights: tuple[float, float, float]) -> float:
    """(B, M, D) pairs: variance and covariance over the batch at each match, nu halved."""
    inv = float(np.mean((a - b) ** 2))
    var, cov = [], []
    for side in (a, b):
        for m in range(side.shape[1]):
            x = side[:, m]
            centred = x - x.mean(0)
            n, d = x.shape
            for j in range(d):
                std = math.sqrt((centred[:, j] ** 2).sum() / (n - 1) + 1e-4)
                var.append(max(0.0, 1 - std))
            c = centred.T @ centred / (n - 1)
            cov.append(sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d)
    lam, mu, nu = weights
    return lam * inv + mu * float(np.mean(var)) + nu * float(np.mean(cov))


def vicregl_pair(
    a: F64,
    b: F64,
    where_a: F64,
    where_b: F64,
    count: tuple[int, int],
    all_features: bool,
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
) -> float:
    """arXiv 2210.01571: local loss of two maps (B, L, D) at places (B, L, 2)."""

    def side(
        x: F64, y: F64, by_x: F64, by_y: F64, keep: int
    ) -> float:  # pairs found by (by_x, by_y), loss on (x, y)
        left, right = [], []
        for image in range(len(x)):
            found = nearest(by_x[image], by_y[image], keep)
            left.append([x[image, i] for i, _ in found])
            right.append([y[image, j] for _, j in found])
        return _vicreg_of_matches(np.array(left), np.array(right), weights)

    first, second = (len(a[0]), len(b[0])) if all_features else count
    features = (side(a, b, a, b, first) + side(b, a, b, a, second)) / 2
    places = (side(a, b, where_a, where_b, count[0]) + side(b, a, where_b, where_a, count[1])) / 2
    return features + places
