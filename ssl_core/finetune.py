"""Fine-tuning from a fitted head: LP-FT (arXiv 2202.10054).

A head that starts at random would first distort the features, and short budgets end there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from . import models
from .augment import Augmenter
from .job import device
from .optim import learning_rate, parameter_groups
from .reader import ShardReader
from .types import Array, Labels, View

WARMUP, SMOOTHING, DECAY = 0.1, 0.1, 0.05
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """How long and how fast. ``lr`` is for this batch size."""

    steps: int = 400
    batch_size: int = 32
    lr: float = 3e-4


class Classifier(nn.Module):
    """An encoder with a linear head on its pooled features."""

    def __init__(self, encoder: models.Encoder, weight: Array, bias: Array) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.embed_dim, len(bias))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        out: Tensor = self.head(self.encoder(x).pooled)
        return out


def crops(side: int, least: float = 0.5, flip: float = 0.5) -> View:
    """Crops of ``least`` of the image's area and more, with mild changes of colour."""
    return View(side, (least, 1.0), flip=flip, jitter=(0.2, 0.2, 0.2, 0.0), jitter_p=0.5)


def keep_statistics(net: nn.Module) -> None:
    """Batch norms normalise as in service until ``net.train()`` is called again."""
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


class Source(Protocol):
    """Where images come from: squares of ``side``, as a ShardReader gives them."""

    side: int
    channels: int

    def take(self, rows: Rows) -> Tensor:
        """Rows (B,) -> uint8 (B, C, S, S)."""
        ...


def fit(
    encoder: models.Encoder,
    head: tuple[Array, Array],
    source: Source,
    labels: Labels,
    rows: Rows,
    budget: Budget,
    seed: int,
    colour: tuple[models.Colour, models.Colour] | None = None,
    keep: bool = False,
    view: View | None = None,
) -> Classifier:
    """Train encoder and head on rows of ``source``; what needs no gradient stays as it is.

    Args:
        encoder: changed by the call.
        head: weight (C, D) and bias (C,) on the encoder's features, as fitted to ``rows``.
        labels: (N,) the head's class of each of the source's rows; those of ``rows`` count.
        rows: what batches are drawn from; a row named twice is drawn twice as often.
        colour: mean and standard deviation of the encoder's inputs; None: our own encoders'.
        keep: batch norms use and keep their statistics, those that ``head`` was fitted with.
        view: how images are cut for the encoder; None: :func:`crops`.
    """
    torch.manual_seed(seed)
    net = Classifier(encoder, *head).to(device()).train()
    if keep:
        keep_statistics(net)
    colour = colour or models.normalisation(source.channels)
    groups = parameter_groups(net, DECAY)
    optimizer = torch.optim.AdamW(groups, lr=budget.lr, fused=True)
    augment = Augmenter([view or crops(source.side)], *colour)
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device()).manual_seed(seed)
    for step in range(budget.steps):
        drawn = rng.choice(rows, min(budget.batch_size, len(rows)), replace=False)
        (x,) = augment(source.take(drawn).to(device()), generator)
        target = torch.from_numpy(labels[drawn]).to(device())
        loss = F.cross_entropy(net(x), target, label_smoothing=SMOOTHING)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, budget.steps, budget.lr, WARMUP)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 3.0)
        optimizer.step()
    return net.eval()


def predict(
    encoder: models.Encoder,
    head: tuple[Array, Array],
    reader: ShardReader,
    labels: Labels,
    train: Rows,
    test: Rows,
    budget: Budget,
    seed: int,
) -> Labels:
    """Train on rows ``train`` and name rows ``test``: (M,) of the head's classes.

    Args:
        encoder: changed by the call.
        head: weight (C, D) and bias (C,) on the encoder's features, as fitted to rows ``train``.
        labels: (N,) the head's class of each of the reader's rows; those of ``train`` count.
    """
    net = fit(encoder, head, reader, labels, train, budget, seed)
    return _name(net, reader, test, models.normalisation(reader.channels))


@torch.inference_mode()
def _name(net: nn.Module, reader: ShardReader, rows: Rows, colour: Any) -> Labels:
    parts = []
    for first in range(0, len(rows), 512):
        images = reader.take(rows[first : first + 512]).to(device())
        parts.append(net(models.preprocess(images, *colour)).argmax(1).cpu().numpy())
    return np.concatenate(parts)
