"""Rung 5: go on pretraining without labels, from the champion, on old and fresh images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import bands, job, shards, train
from ..artifacts import atomic_dir
from ..config import Before, Config, Sam
from ..evaluate import linear
from ..models import Encoder
from ..progress import Reporter
from ..shards import Sample
from ._common import TRAIN, Answer, Candidate, Context, Skip, untrainable

JUDGED = True
LEAST = 32  # fresh images below which there is nothing to learn the domain from
VIEWS = 2
SHARD_BYTES = 2**28


def counts(ctx: Context, cfg: Config) -> tuple[int, int]:
    """Old and fresh images of the mix."""
    fresh = len(ctx.fresh)
    want = round((1 - cfg.repair.mix) / cfg.repair.mix * fresh)
    return min(want, int(ctx.pool.mine[: ctx.pool.old].sum())), fresh


def cost(ctx: Context, cfg: Config) -> float:
    """Views of the mix over all epochs, trained on, and all images once for the head."""
    crop = (cfg.pretrain.crop_size / ctx.pool.side) ** 2
    return TRAIN * VIEWS * crop * sum(counts(ctx, cfg)) * cfg.repair.ssl_epochs + len(ctx.pool)


def settings(ctx: Context, cfg: Config) -> Config:
    """Pretraining from the champion, at a share of its learning rate."""
    p, n = cfg.pretrain, sum(counts(ctx, cfg))
    rate = job.options(p).lr if p.lr is None else p.lr
    changes = {
        "init": str(ctx.folder),
        "lr": cfg.repair.ssl_lr * rate,
        "epochs": cfg.repair.ssl_epochs,
        "batch_size": min(p.batch_size, n // 2),
        "image_size": ctx.pool.side,
        "processes": 1,
        "before": Before(),
        "sam": Sam(),
    }
    return cfg.model_copy(update={"pretrain": p.model_copy(update=changes)})


def write_mix(ctx: Context, cfg: Config, folder: Path) -> None:
    """Shards of the mix, losslessly as arrays; old images are drawn by a fixed seed."""
    pool, (old, fresh) = ctx.pool, counts(ctx, cfg)
    candidates = np.flatnonzero(pool.mine[: pool.old])
    drawn = np.random.default_rng(cfg.seed).choice(candidates, old, replace=False)
    rows = np.r_[np.sort(drawn), np.arange(pool.old, pool.old + fresh)]

    def sample(row: int) -> Sample:
        pixels = pool.take(np.array([row]))[0].permute(1, 2, 0).numpy()  # (C, S, S) -> (S, S, C)
        label = pool.classes[pool.labels[row]] if pool.labels[row] >= 0 else None
        key, group, source = (str(a[row]) for a in (pool.sha256, pool.groups, pool.sources))
        return Sample("train", key, "npy", bands.pack(pixels), label, group, source)

    unique = dict.fromkeys(pool.sha256[rows].tolist())
    place = dict(zip(pool.sha256[rows].tolist(), rows.tolist(), strict=True))
    with atomic_dir(folder) as out:
        made = (sample(place[key]) for key in unique)
        shards.write(out, made, SHARD_BYTES, pool.side, pool.channels)


def pretrained(ctx: Context, cfg: Config) -> Encoder:
    """Train, or go on where an interrupted call stopped."""
    mix, work = ctx.work / "mix", ctx.work / "train"
    if not (mix / "index.json").exists():
        write_mix(ctx, cfg, mix)
    work.mkdir(parents=True, exist_ok=True)
    with Reporter("repair") as report:
        encoder: Encoder = train.fit(settings(ctx, cfg), mix, work, report).encoder  # type: ignore[assignment]
    return encoder.eval()


def propose(ctx: Context, cfg: Config) -> Answer:
    """New features, and a head refitted on them. The gate measures what was forgotten."""
    if len(ctx.fresh) < LEAST:
        return Skip(f"{len(ctx.fresh)} fresh images are too few to learn from ({LEAST} needed).")
    if lacking := untrainable(ctx, cfg):
        return lacking
    encoder = pretrained(ctx, cfg)
    rows = ctx.pool.rows(cfg.repair.mix)
    head = linear.fit(ctx.pool.embeddings(ctx.features_of(encoder), rows))
    old, fresh = counts(ctx, cfg)
    notes = {"old": old, "fresh": fresh, "epochs": cfg.repair.ssl_epochs}
    return Candidate(head, encoder, ctx.labelled, notes)
