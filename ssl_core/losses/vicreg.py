"""VICReg: invariance, variance and covariance of embeddings (arXiv 2105.04906).

The terms are those of the authors' code, not of the paper: the invariance is a mean over
dimensions too, and the variance counts each view by a half.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dist
from ._common import check_shapes, full_precision, raised
from ._pairs import check_pair

EPSILON = 1e-4  # added to each variance: the root has a gradient at zero


def invariance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of (N, ..., d) embeddings, partners in equal places.

    Both learn. No gather: a mean over this rank's rows, whose mean over equal ranks is global.

    Raises:
        ValueError: unequal shapes.
    """
    check_shapes(a, b)
    with full_precision(a):
        return F.mse_loss(raised(a), raised(b))


def variance(z: Tensor) -> Tensor:
    """Mean over dimensions of relu(1 - std), the std being that of the rows plus epsilon.

    Args:
        z: (N, ..., d); dimensions between take part one by one, as in VICRegL. Gather z over
            ranks first: the statistic is of the whole batch.

    Raises:
        ValueError: fewer than two rows.
    """
    _check_batch(z)
    with full_precision(z):
        return F.relu(1 - (raised(z).var(0) + EPSILON).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances over d, averaged over dimensions between.

    Args:
        z: (N, ..., d), gathered over ranks as for :func:`variance`.

    Raises:
        ValueError: fewer than two rows.
    """
    _check_batch(z)
    with full_precision(z):
        x = raised(z)
        x = x - x.mean(0)
        c = torch.einsum("n...i,n...j->...ij", x, x) / (len(x) - 1)  # (..., d, d)
        own = torch.diag_embed(c.diagonal(dim1=-2, dim2=-1))
        return ((c - own).square().sum((-2, -1)) / z.shape[-1]).mean()


def vicreg(
    a: Tensor, b: Tensor, weights: tuple[float, float, float] = (25.0, 25.0, 1.0)
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over the global batch, and each term without its weight or gradient.

    Args:
        a, b: (B, d) embeddings of the two views; any scale, it is part of what is learnt.
        weights: of invariance, variance (mean over both views) and covariance (sum over both).

    Equal rows throughout have loss 0.99 * weights[1] and no gradient: collapse is stationary,
    and only the noise of initialisation leads away from it.

    Raises:
        ValueError: unequal or non-2-D shapes, or fewer than two images.
    """
    check_pair(a, b)
    first, second = dist.gather(raised(a)), dist.gather(raised(b))  # (B, d) -> (N, d)
    terms = {
        "invariance": invariance(first, second),
        "variance": (variance(first) + variance(second)) / 2,
        "covariance": covariance(first) + covariance(second),
    }
    loss = sum((w * t for w, t in zip(weights, terms.values(), strict=True)), first.new_zeros(()))
    return loss, {name: term.detach() for name, term in terms.items()}


def _check_batch(z: Tensor) -> None:
    if z.ndim < 2 or len(z) < 2:
        raise ValueError(f"shape {tuple(z.shape)} must hold at least 2 rows: (N, ..., d)")
