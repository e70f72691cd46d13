"""Joint-embedding losses written from the papers with plain loops in float64.

Nothing here imports ssl_core or torch.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def cosine(a: F64, b: F64) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def log_share(values: list[float], chosen: int) -> float:
    """Log of the softmax's entry ``chosen``."""
    return values[chosen] - math.log(sum(math.exp(v) for v in values))


def moco(query: F64, key: F64, temperature: float) -> float:
    """MoCo v3, arXiv 2104.02057, algorithm 1: ctr(q, k)."""
    total = 0.0
    for i in range(len(query)):
        total -= log_share([cosine(query[i], k) / temperature for k in key], i)
    return 2 * temperature * total / len(query)


def clip(a: F64, b: F64, scale: float) -> float:
    """CLIP, arXiv 2103.00020, figure 3."""
    total = 0.0
    for i in range(len(a)):
        total -= log_share([scale * cosine(a[i], other) for other in b], i)
        total -= log_share([scale * cosine(b[i], other) for other in a], i)
    return total / (2 * len(a))


def byol(prediction: F64, target: F64) -> float:
    """BYOL, arXiv 2006.07733, eq. 2: squared distance of the unit vectors."""
    total = 0.0
    for p, z in zip(prediction, target, strict=True):
        total += float(((p / np.linalg.norm(p) - z / np.linalg.norm(z)) ** 2).sum())
    return total / len(prediction)


def vicreg(a: F64, b: F64, weights: tuple[float, float, float]) -> float:
    """VICReg, arXiv 2105.04906, sections 4.1 with the scales of the authors' code."""
    n, d = a.shape
    inv = sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    var = cov = 0.0
    for z in (a, b):
        mean = [sum(z[i, j] for i in range(n)) / n for j in range(d)]
        c = np.zeros((d, d))
        for j, k in itertools.product(range(d), range(d)):
            c[j, k] = sum((z[i, j] - mean[j]) * (z[i, k] - mean[k]) for i in range(n)) / (n - 1)
        var += sum(max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d / 2
        cov += sum(c[j, k] ** 2 for j in range(d) for k in range(d) if j != k) / d
    return float(weights[0] * inv + weights[1] * var + weights[2] * cov)


def anchors(a: F64, b: F64, temperature: float) -> list[tuple[float, list[float]]]:
    """Of each of 2N views: logit of its partner, and logits of its 2N - 2 negatives."""
    z, n = [*a, *b], len(a)
    found = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k not in (i, partner)]
        found.append(
            (
                cosine(z[i], z[partner]) / temperature,
                [cosine(z[i], z[k]) / temperature for k in others],
            )
        )
    return found


def rince(a: F64, b: F64, temperature: float, q: float, lam: float) -> float:
    """RINCE, arXiv 2201.04309, eq. 5."""
    losses = []
    for own, others in anchors(a, b, temperature):
        positive, negative = math.exp(own), sum(math.exp(u) for u in others)
        losses.append(-(positive**q) / q + (lam * (positive + negative)) ** q / q)
    return float(np.mean(losses))


def generalised(a: F64, b: F64, temperature: float, weight: float) -> float:
    """Intriguing properties, arXiv 2011.02803, table 1: NT-Xent in two terms."""
    align, spread = [], []
    for own, others in anchors(a, b, temperature):
        align.append(-own)
        spread.append(math.log(sum(math.exp(u) for u in [own, *others])))
    return float(np.mean(align) + weight * np.mean(spread))


def decoupled(a: F64, b: F64, temperature: float, weight: float) -> float:
    """Decoupled contrastive learning, arXiv 2110.06848, eq. 6, as a mean over views."""
    align, spread = [], []
    for own, others in anchors(a, b, temperature):
        align.append(-own)
        spread.append(math.log(sum(math.exp(u) for u in others)))
    return float(np.mean(align) + weight * np.mean(spread))


def least_transport(x: F64, y: F64) -> float:
    """Mean squared difference of two lists of numbers under the best of all matchings."""
    return min(float(np.mean((x - np.array(p)) ** 2)) for p in itertools.permutations(y))
