"""What a rung gets and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import embed, models
from ..config import Config
from ..evaluate import linear
from ..evaluate._head import Head
from ..finetune import Rows
from ..reader import ShardReader
from ..registry import Model
from ..shards import DEPLOYMENT, synthetic
from ..types import Array, Embeddings, Labels

REPEAT = 8  # times a fresh image may stand for itself at most
SPARE = 0.1  # share of groups left out of fine-tuning, for the temperature
TRAIN = 3  # a training step costs as much as three forward passes
Text = NDArray[np.str_]


@dataclass(frozen=True)
class Candidate:
    """A repaired model: ``encoder`` is None where the champion's stays as it is.

    ``labels``: fresh labels it learned from; ``notes``: numbers for the record.
    """

    head: Head
    encoder: models.Encoder | None = None
    labels: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """This rung cannot help here; the next one is asked."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """The ladder ends: there is nothing for a rung to mend."""

    reason: str


@dataclass(frozen=True)
class Ask:
    """The ladder ends with a request for the whole chain, which judges its own candidate."""

    reason: str


Answer = Candidate | Skip | Stop | Ask


@dataclass(frozen=True)
class Images:
    """Deployment images: ``pixels`` (N, C, S, S) uint8, the rest (N,); label "" if unknown.

    ``earlier`` marks those of days that the champion was repaired with.
    """

    pixels: NDArray[np.uint8]
    labels: Text
    groups: Text
    sha256: Text
    earlier: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, rows: NDArray[Any]) -> Images:
        """The rows of a mask or of indices."""
        return Images(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Loss:
    """The champion's mean score on all fresh labels beside that on the old held-out images."""

    now: float
    reference: float
    high: float  # upper end of the interval of now - reference
    labels: int

    @property
    def lost(self) -> float:
        """How much there is to win back."""
        return max(0.0, self.reference - self.now)


class Pool:
    """Old training images and fresh ones as one source: fresh rows come after the old.

    Old are the rows of the shards that the champion trained on: others may hold what judges.
    """

    def __init__(self, shards: Path, seen: pd.DataFrame, fresh: Images, size: int) -> None:
        self.reader, self.fresh, self.side = ShardReader(shards, "train", size), fresh, size
        self.channels = self.reader.channels
        old = self.reader.frame
        told = old["label"].fillna("").mask(synthetic(old["source"]), "")  # heads see real ones
        label = np.r_[told.to_numpy(str), fresh.labels]
        self.groups: Text = np.r_[old["group"].to_numpy(str), fresh.groups]
        self.sha256: Text = np.r_[old["key"].to_numpy(str), fresh.sha256]
        self.sources: Text = np.r_[old["source"].to_numpy(str), np.full(len(fresh), DEPLOYMENT)]
        self.classes = tuple(sorted(set(label) - {""}))
        self.labels: Labels = pd.Categorical(label, self.classes).codes.astype(np.int64)
        self.old = len(old)
        self.mine = np.r_[old["key"].isin(seen["sha256"]), np.ones(len(fresh), np.bool_)]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> Tensor:
        """Rows (B,) -> uint8 (B, C, S, S)."""
        out = torch.empty((len(rows), self.channels, self.side, self.side), dtype=torch.uint8)
        fresh = rows >= self.old
        if (~fresh).any():
            out[torch.from_numpy(~fresh)] = self.reader.take(rows[~fresh])
        if fresh.any():
            pixels = torch.from_numpy(self.fresh.pixels[rows[fresh] - self.old])
            out[torch.from_numpy(fresh)] = pixels
        return out

    def rows(self, mix: float) -> Rows:
        """Labelled rows; fresh ones are repeated until they are about ``mix`` of all."""
        known = np.flatnonzero((self.labels >= 0) & self.mine)
        new = known[known >= self.old]
        new = new[~self.fresh.earlier[new - self.old]]
        if not len(new):
            return known
        want = mix / (1 - mix) * (len(known) - len(new)) / len(new)
        times = int(np.clip(round(want), 1, REPEAT))
        found: Rows = np.r_[known, np.repeat(new, times - 1)]
        return found

    def embeddings(self, features: Array, rows: Rows) -> Embeddings:
        """Rows with the features (N, D) of all."""
        return Embeddings(
            features[rows],
            self.labels[rows],
            self.classes,
            self.sha256[rows],
            self.groups[rows],
            self.sources[rows],
        )


@dataclass(frozen=True)
class Context:
    """What a rung may know.

    ``seen``: what the champion trained on (sha256, group); ``feed``: what monitoring says of each
    day's input; ``seconds``: measured time of one image through the champion's encoder; ``work``:
    a folder of this repair and rung, for what may be interrupted; ``finishes``: no new harm,
    but labels enough to finish the repair that made the champion; the "first" or a "later" look.
    """

    champion: Model
    folder: Path
    fresh: Images
    shards: Path
    seen: pd.DataFrame
    feed: tuple[Mapping[str, Any], ...]
    loss: Loss
    seconds: float
    work: Path
    finishes: str = ""

    @property
    def colour(self) -> tuple[models.Colour, models.Colour]:
        """Mean and standard deviation of the encoder's inputs."""
        meta = self.champion.meta
        return tuple(meta["mean"]), tuple(meta["std"])

    @cached_property
    def pool(self) -> Pool:
        """What is learned from."""
        size = int(self.champion.meta["image_size"])
        return Pool(self.shards, self.seen, self.fresh, size)

    @cached_property
    def features(self) -> Array:
        """Features (N, D) of the pool by the champion's encoder."""
        return self.features_of(self.champion.encoder)

    def features_of(self, encoder: models.Encoder) -> Array:
        """Features (N, D) of the pool by another encoder."""
        old = embed.compute(encoder, self.pool.reader, *self.colour)
        return np.concatenate([old, features(encoder, self.fresh, self.colour)])

    def features_at(self, encoder: models.Encoder, rows: Rows) -> Array:
        """Features (M, D) of some rows of the pool."""
        encoder = embed.ready(encoder)  # type: ignore[assignment]
        parts = [rows[i : i + 256] for i in range(0, len(rows), 256)]
        found = [embed.forward(encoder, self.pool.take(r), *self.colour) for r in parts]
        return np.concatenate(found)

    def refitted(self, cfg: Config) -> Head:
        """The head that rung refit_head proposes, and from which fine-tuning starts."""
        rows = self.pool.rows(cfg.repair.mix)
        return linear.fit(self.pool.embeddings(self.features, rows))

    @property
    def labelled(self) -> int:
        """Fresh labels to learn from."""
        return int((self.fresh.labels != "").sum())


def features(
    encoder: models.Encoder, images: Images, colour: tuple[models.Colour, models.Colour]
) -> Array:
    """Pooled features (N, D); (0, D) of none."""
    encoder, parts = embed.ready(encoder), []  # type: ignore[assignment]
    for first in range(0, len(images), 256):
        batch = torch.from_numpy(images.pixels[first : first + 256])
        parts.append(embed.forward(encoder, batch, *colour))
    return np.concatenate(parts) if parts else np.zeros((0, encoder.embed_dim), np.float32)


def short(ctx: Context, cfg: Config) -> Skip | None:
    """Too few fresh labels to learn from."""
    need = cfg.deploy.min_labels
    if ctx.labelled >= need:
        return None
    return Skip(f"{ctx.labelled} fresh labels to learn from, {need} needed (deploy.min_labels)")


def say_loss(ctx: Context, cfg: Config) -> str:
    """The loss and its interval in words."""
    found = ctx.loss
    return (
        f"{cfg.repair.metric} is {found.now:.1%} on {found.labels} fresh labels, "
        f"{found.reference:.1%} on the old held-out images; the interval of the loss begins at "
        f"{-found.high:.1%}"
    )


def untrainable(ctx: Context, cfg: Config) -> Skip | None:
    """Nothing to train on, or too little left to win back for a training.

    To finish a repair, more has to be lost than ``promote.margin``, which the gate allows: at the
    point estimate in the first look, proven in later ones.
    """
    limit, found = cfg.promote.margin, ctx.loss
    enough = found.high < -limit or (ctx.finishes == "first" and found.lost > limit)
    if ctx.finishes and not enough:
        return Skip(f"Too little is lost for a training: {say_loss(ctx, cfg)}.")
    return short(ctx, cfg)


def spared(groups: Text) -> NDArray[np.bool_]:
    """Mask (N,) of groups that fine-tuning leaves out, by hash."""
    names, code = np.unique(groups, return_inverse=True)
    return np.array([fraction(f"spare:{n}") < SPARE for n in names], np.bool_)[code]


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13


def calibrated(head: Head, embeddings: Embeddings) -> Head:
    """The head with the temperature that suits labelled rows of classes it knows."""
    names = np.asarray(embeddings.classes)[embeddings.labels]
    place = {name: i for i, name in enumerate(head.classes)}
    known = np.isin(names, head.classes)
    if not known.any():
        return head
    target = np.array([place[n] for n in names[known]], np.int64)
    logits = head.logits(embeddings.features[known])
    return replace(head, temperature=linear.temperature(logits, target))
