"""Rung 4: fine-tune everything from the refitted head on: LP-FT (arXiv 2202.10054)."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from .. import finetune, job
from ..config import Config
from ..evaluate import linear
from ..models import Encoder
from ..types import View
from ._common import TRAIN, Answer, Candidate, Context, calibrated, spared, untrainable

JUDGED = True
BATCH = 32
LEAST = 0.8  # of the image's area in a crop: the head is right on whole images, and stays so


def cost(ctx: Context, cfg: Config) -> float:
    """All images once for the head, and the training steps."""
    return float(len(ctx.pool) + TRAIN * BATCH * cfg.repair.steps)


def view(cfg: Config, side: int) -> View:
    """Mild crops; mirrored as often as in pretraining, where a user may have ruled it out."""
    return finetune.crops(side, LEAST, getattr(job.options(cfg.pretrain), "flip", 0.0))


def tuned(ctx: Context, cfg: Config, encoder: Encoder) -> Candidate:
    """Train what of ``encoder`` wants gradients, from a head fitted to its frozen features.

    Old images are in every batch with the fresh ones, and batch norms keep the statistics that the
    head was fitted with. A tenth of the groups takes no part: on these the temperature is fitted.
    """
    pool, rows = ctx.pool, ctx.pool.rows(cfg.repair.mix)
    spare = spared(pool.groups[rows])
    start = linear.fit(pool.embeddings(ctx.features, rows[~spare]), ctx.refitted(cfg))
    place = {name: i for i, name in enumerate(start.classes)}
    codes = np.array([place.get(c, -1) for c in pool.classes], np.int64)
    labels = np.where(pool.labels >= 0, codes[pool.labels], -1)
    net = finetune.fit(
        encoder,
        (start.weight, start.bias),
        pool,
        labels,
        rows[~spare],
        finetune.Budget(cfg.repair.steps, BATCH, cfg.repair.lr),
        cfg.seed,
        ctx.colour,
        keep=True,
        view=view(cfg, pool.side),
    )
    weight, bias = (p.detach().cpu().numpy() for p in (net.head.weight, net.head.bias))
    head = replace(start, weight=weight, bias=bias)
    if spare.any():
        own = np.unique(rows[spare])
        part = ctx.features_at(encoder, own)
        head = calibrated(head, replace(pool.embeddings(ctx.features, own), features=part))
    return Candidate(head, encoder, ctx.labelled, {"steps": cfg.repair.steps, "lr": cfg.repair.lr})


def propose(ctx: Context, cfg: Config) -> Answer:
    """All weights of encoder and head move."""
    if lacking := untrainable(ctx, cfg):
        return lacking
    return tuned(ctx, cfg, copy.deepcopy(ctx.champion.encoder))
