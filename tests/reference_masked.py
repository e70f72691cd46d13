"""Losses of the masked methods with plain loops in float64, from the papers' formulas.

Nothing here imports ssl_core or torch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max())
    return e / e.sum()


def ibot(student: F64, target: F64, mask: Mask, temperature: float) -> float:
    """iBOT, arXiv 2111.07832, eq. 2, each image's sum over its own count of masked patches.

    ``student`` and ``target`` are (N, L, K): of all patches.
    """
    per_image = []
    for image in range(len(mask)):
        terms = []
        for patch in np.flatnonzero(mask[image]):
            q = softmax(student[image, patch] / temperature)
            terms.append(
                -sum(t * math.log(p) for t, p in zip(target[image, patch], q, strict=True))
            )
        per_image.append(sum(terms) / max(1, len(terms)))
    return float(np.mean(per_image))


def sinkhorn(logits: F64, temperature: float, iterations: int) -> F64:
    """As SwAV's and DINOv2's listings: Q (K, M), rows to 1/K, then columns to 1/M, in turn."""
    q = np.exp(logits / temperature).T
    k, m = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for row in range(k):
            q[row] = q[row] / q[row].sum() / k
        for column in range(m):
            q[:, column] = q[:, column] / q[:, column].sum() / m
    return (q * m).T


def koleo(x: F64) -> float:
    """arXiv 1806.03198, eq. 3 on unit vectors: -mean log of the nearest neighbour's distance."""
    z = [row / np.linalg.norm(row) for row in x]
    terms = []
    for i, a in enumerate(z):
        nearest = min(float(np.linalg.norm(a - b)) for j, b in enumerate(z) if j != i)
        terms.append(-math.log(nearest))
    return float(np.mean(terms))


def simmim(pred: F64, images: F64, mask: Mask, patch: int) -> float:
    """SimMIM, arXiv 2111.09886, eq. 1: mean |error| over hidden pixels, on whole images.

    ``pred`` and ``images`` are (B, C, H, W), ``mask`` (B, L) over patches.
    """
    columns = images.shape[3] // patch
    total, count = 0.0, 0
    for image in range(len(images)):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                if mask[image, y // patch * columns + x // patch]:
                    total += float(np.abs(pred[image, :, y, x] - images[image, :, y, x]).sum())
                    count += images.shape[1]
    return total / count


def msn_target(z: F64, prototypes: F64, temperature: float, sharpen: float) -> F64:
    """MSN, arXiv 2204.07141, section 3: p = softmax(cosine / t), then p^(1/T) normalised."""
    rows = []
    for a in z:
        cosines = [a @ q / np.linalg.norm(a) / np.linalg.norm(q) for q in prototypes]
        p = softmax(np.array(cosines) / temperature) ** (1 / sharpen)
        rows.append(p / p.sum())
    return np.array(rows)


def kl(p: F64, q: F64) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def msn(
    anchors: F64,
    target: F64,
    prototypes: F64,
    temperature: float,
    weight: float,
    prior: F64,
    mean_first: bool,
) -> float:
    """MSN, eq. 2, with PMSN's prior (arXiv 2210.07277); the uniform one gives MSN."""
    crosses, all_p = [], []
    for view in anchors:
        for image, a in enumerate(view):
            p = msn_target(a[None], prototypes, temperature, 1.0)[0]
            all_p.append(p)
            crosses.append(-float((target[image] * np.log(p)).sum()))
    mean = np.mean(all_p, axis=0)
    gap = kl(mean, prior) if mean_first else kl(prior, mean)
    return float(np.mean(crosses)) + weight * gap
