"""Closed forms of the contrastive loss on two views: where its gradient goes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..evaluate._common import unit
from ..types import Array, Labels

F64 = NDArray[np.float64]


def pushes(a: Array, b: Array, temperature: float) -> F64:
    """The gradient of NT-Xent on each cosine of an anchor with a negative, (2N, 2N).

    ``P_ij / t`` with P the softmax over all other views (arXiv 2002.05709); the anchor's own column
    and its partner's are zero. Summed over a row it is what pulls the partner, (1 - P_ip) / t.
    """
    z = unit(np.concatenate([a, b]).astype(np.float64))  # 2 x (N, d) -> (2N, d)
    n = len(a)
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(2 * n), np.roll(np.arange(2 * n), n)] = 0
    pushed: F64 = p / temperature
    return pushed


def hardest_share(pushed: F64, share: float = 0.1) -> float:
    """Of an anchor's push, what goes to the ``share`` of negatives that are most like it; mean.

    At least one negative. ``share`` where the push is even, 1 where it is all on the hardest.
    """
    rows = np.sort(pushed, axis=1)[:, 2:]  # without the zeros of the anchor and its partner
    count = max(1, round(share * rows.shape[1]))
    total = rows.sum(1)
    return float((rows[:, -count:].sum(1)[total > 0] / total[total > 0]).mean())


def class_excess(pushed: F64, labels: Labels) -> float:
    """Push on negatives of the anchor's own class, over what an even push would give them.

    1: no more than their number; NaN where no anchor has such a negative. ``labels`` (N,).
    """
    both = np.concatenate([labels, labels])
    same = both[:, None] == both[None]
    negative = np.ones_like(same)
    n = len(labels)
    rows = np.arange(2 * n)
    negative[rows, rows] = negative[rows, (rows + n) % (2 * n)] = False
    same &= negative
    total = pushed.sum(1)
    live = same.any(1) & (total > 0)
    if not live.any():
        return float("nan")
    got = (pushed * same).sum(1)[live] / total[live]
    even = same.sum(1)[live] / negative.sum(1)[live]
    return float(got.sum() / even.sum())
