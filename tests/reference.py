"""Losses written from the papers with plain loops in float64: slow, obvious, independent.

Nothing here imports ssl_core or torch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def _unit(x: F64) -> F64:
    return x / np.linalg.norm(x)


def nt_xent(a: F64, b: F64, temperature: float) -> float:
    """SimCLR, arXiv 2002.05709, eq. 1 and algorithm 1."""
    z = [_unit(row) for row in a] + [_unit(row) for row in b]
    n = len(a)
    total = 0.0
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        below = sum(math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(z[i] @ z[partner] / temperature) / below)
    return total / (2 * n)


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max())
    return e / e.sum()


def dino(student: F64, teacher: F64, centre: F64, t_student: float, t_teacher: float) -> float:
    """DINO, arXiv 2104.14294, eq. 3: every global teacher view against every other student view."""
    terms = []
    for g in range(len(teacher)):
        for v in range(len(student)):
            if v == g:
                continue
            for image in range(student.shape[1]):
                p = softmax((teacher[g, image] - centre) / t_teacher)
                q = softmax(student[v, image] / t_student)
                terms.append(-(p * np.log(q)).sum())
    return float(np.mean(terms))


def mae(pred: F64, images: F64, hidden: NDArray[np.bool_], patch: int, norm_pix: bool) -> float:
    """MAE, arXiv 2111.06377, section 3: mean squared error on hidden patches."""
    errors = []
    columns = images.shape[3] // patch
    for image in range(len(images)):
        for index in np.flatnonzero(hidden[image]):
            top, left = index // columns * patch, index % columns * patch
            want = []
            for y in range(top, top + patch):
                for x in range(left, left + patch):
                    want += [images[image, c, y, x] for c in range(images.shape[1])]
            target = np.array(want)
            if norm_pix:
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
            errors.append(np.mean((pred[image, index] - target) ** 2))
    return float(np.mean(errors))


def momentum_average(first: F64, constant: F64, momenta: list[float]) -> F64:
    """Closed form of an exponential average that follows a constant."""
    return constant + math.prod(momenta) * (first - constant)
