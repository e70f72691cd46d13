"""Rung 2: other class shares, found without labels by EM (Saerens, Latinne, Decaestecker 2002)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..types import Array
from ._common import Answer, Candidate, Context, Skip

JUDGED = True
STEPS, CHANGE = 1000, 1e-7
LEAST = 100  # images below which shares are noise
FLOOR = 1e-4  # share of a class that deployment seems not to show: it may yet come
Prior = NDArray[np.float64]


def cost(ctx: Context, cfg: Config) -> float:
    """The fresh images once."""
    return float(len(ctx.fresh))


def shares(probabilities: Array, prior: Prior) -> Prior:
    """Class shares (C,) of unlabelled images from a classifier's answers (N, C).

    ``prior`` (C,) are the shares it was trained on. Only valid if the images of a class look as
    they did (label shift); each step raises the likelihood.
    """
    p, now = probabilities.astype(np.float64), prior.copy()
    for _ in range(STEPS):
        weighed = p * (now / prior)
        new = (weighed / weighed.sum(1, keepdims=True)).mean(0)
        done, now = np.abs(new - now).sum() < CHANGE, new
        if done:
            break
    return now


def trained_on(ctx: Context) -> Prior:
    """Shares (C,) of the head's classes in the old training images, never zero."""
    pool, names = ctx.pool, ctx.champion.head.classes
    old = pool.labels[: pool.old][pool.mine[: pool.old]]
    shown = np.asarray(pool.classes)[old[old >= 0]]
    count = np.array([(shown == n).sum() for n in names], np.float64) + 1e-3
    found: Prior = count / count.sum()
    return found


def propose(ctx: Context, cfg: Config) -> Answer:
    """The champion's head with its biases moved by the logarithm of the shares' ratio."""
    new = ~ctx.fresh.earlier
    if new.sum() < LEAST:
        return Skip(f"{new.sum()} fresh images are too few for class shares ({LEAST} needed).")
    head, prior = ctx.champion.head, trained_on(ctx)
    own = ctx.features[ctx.pool.old :][new]
    found = np.maximum(shares(head.probabilities(own), prior), FLOOR)
    ratio = np.log(found / found.sum()) - np.log(prior)
    # probabilities are softmax(logits / T): what is added to them is multiplied by T here
    bias = head.bias + (head.temperature * ratio).astype(np.float32)
    moved = float(np.abs(found / found.sum() - prior).sum() / 2)
    return Candidate(replace(head, bias=bias), notes={"shares_moved": moved})
