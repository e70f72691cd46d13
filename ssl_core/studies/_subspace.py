"""What a projector reads of the representation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..types import Array

F64 = NDArray[np.float64]


def reading(projector: nn.Module, features: Array) -> F64:
    """Mean of J'J over features (N, D), J the projector's Jacobian at a row: (D, D).

    For one linear layer W it is W'W. The projector has to be in eval mode.
    """
    from torch.func import jacrev, vmap

    device = next(projector.parameters()).device

    def one(x: Tensor) -> Tensor:
        out: Tensor = projector(x.unsqueeze(0)).squeeze(0)  # (D,) -> (d,)
        return out

    rows = torch.from_numpy(features).to(device)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(32):
        jacobian = vmap(jacrev(one))(part).detach().double().cpu()  # (B, d, D)
        total += torch.einsum("bij,bik->jk", jacobian, jacobian)
    gram: F64 = (total / len(rows)).numpy()
    return gram


def directions(gram: F64) -> tuple[F64, F64]:
    """Singular values (D,) of what is read, the largest first, and their directions (D, D)."""
    values, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]


def effective_rank(values: F64) -> float:
    """exp of the entropy of singular values (D,) that are scaled to sum to one: 1 to D."""
    total = values.sum()
    if not total > 0:
        return float("nan")
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def enough(values: F64, share: float = 0.99) -> int:
    """How many of the largest singular values (D,) hold ``share`` of their sum of squares."""
    held = np.cumsum(values**2) / (values**2).sum()
    return int(np.searchsorted(held, share - 1e-12) + 1)


def regression(train: Array, targets: F64, test: Array, truth: F64) -> float:
    """R^2 on test rows of ridge regression, penalty by generalised cross-validation, mean target.

    At least -1: what is worse than that says no more.
    """
    from sklearn.linear_model import RidgeCV

    mean, spread = train.mean(0), train.std(0) + 1e-6
    fit = RidgeCV(np.logspace(-1, 5, 13)).fit((train - mean) / spread, targets)
    error = ((fit.predict((test - mean) / spread) - truth) ** 2).sum(0)
    r2 = 1 - error / ((truth - truth.mean(0)) ** 2).sum(0)
    return float(np.maximum(r2, -1).mean())
