"""How little features change with an augmentation, and how well images stay apart then.

``invariance`` is the intraclass share of variance (ANOVA) of q views of each image: 1 where views
of an image are equal, 0 where they differ as much as those of different images. It holds for the
encoder's output; the projector is not kept with an encoder. LiDAR (arXiv 2312.04000), alignment and
uniformity (2005.10242) are of views with all augmentations together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..augment import Augmenter
from ..config import Analyse
from ..embed import forward_views
from ..evaluate import _common, uniformity
from ..types import View
from . import _pictures
from ._subject import DRAWS, Finding, Row, Rows, Subject, row

VIEWS, LIGHT = 3, 192  # views of each of so many images, by augmentation
MANY = 6  # views of each image with all together, for LiDAR
DELTA = (
    1e-4  # ridge of LiDAR, as a share of the mean variance within images; the paper's is absolute
)
EPSILON = 1e-8
ZERO = 1e-20  # squares that are rounding
ALL = "all"
Matrix = NDArray[np.float64]


def families(side: int, channels: int = 3) -> dict[str, View]:
    """All augmentations together, and one at a time, in the strength of common recipes.

    Flip, grey and solarise change half of the views, else all would be alike. Colour and grey are
    of images with three channels.
    """
    still = View(side, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    found = {
        ALL: View(side, (0.3, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey=0.2, blur=0.5),
        "crop": replace(still, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3)),
        "flip": replace(still, flip=0.5),
        "brightness_contrast": replace(still, jitter=(0.4, 0.4, 0.0, 0.0), jitter_p=1.0),
        "colour": replace(still, jitter=(0.0, 0.0, 0.4, 0.1), jitter_p=1.0),
        "grey": replace(still, grey=0.5),
        "blur": replace(still, blur=1.0),
        "solarise": replace(still, solarise=0.5),
    }
    without = () if channels == 3 else ("colour", "grey")
    return {name: view for name, view in found.items() if name not in without}


def features(subject: Subject, rows: Rows, view: View, count: int) -> Matrix:
    """Features of ``count`` views of each row: (n, q, D)."""
    augment = Augmenter([replace(view, count=count)], *subject.colour)
    generator, parts = torch.Generator().manual_seed(subject.seed), []
    device = next(subject.encoder.parameters()).device
    for i in range(0, len(rows), 64):
        views = augment(subject.source.take(rows[i : i + 64]).to(device), generator)
        parts.append(np.stack([forward_views(subject.encoder, v) for v in views], axis=1))
    return np.concatenate(parts).astype(np.float64)


# ---- invariance --------------------------------------------------------------------------------


def _share(within: Matrix, squares: Matrix, sums: Matrix, n: Matrix, q: int) -> Matrix:
    """rho (B,) from sums over images: squares about their means, |mean|^2, means (B, D)."""
    mean_within = within / (n * (q - 1))
    between = q * (squares - (sums**2).sum(axis=1) / n) / np.maximum(n - 1, 1)
    own = (between - mean_within) / q
    whole = own + mean_within
    share: Matrix = np.divide(own, whole, out=np.full_like(own, np.nan), where=whole > 0)
    return share


def invariance(x: Matrix, groups: NDArray[np.str_]) -> _common.Interval:
    """Share of variance that lies between images, of features (n, q, D), with its interval.

    MS_b and MS_w are the mean squares between and within images; v = (MS_b - MS_w) / q, and
    rho = v / (v + MS_w). Slightly negative values are chance. NaN if nothing varies.
    """
    q, means = x.shape[1], x.mean(axis=1)  # (n, q, D) -> (n, D)
    means = means - means.mean(axis=0)  # else sums of squares cancel
    within = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2))
    each = np.column_stack([within, (means**2).sum(axis=1), np.ones(len(x)), means])
    _, code = np.unique(groups, return_inverse=True)
    totals = np.zeros((int(code.max()) + 1, each.shape[1]))
    np.add.at(totals, code, each)

    def shares(sums: Matrix) -> Matrix:
        return _share(sums[:, 0], sums[:, 1], sums[:, 3:], sums[:, 2], q)

    value = float(shares(totals.sum(axis=0, keepdims=True))[0])
    if len(totals) < 2:
        return value, *_common.NONE
    return value, *_common.spread(shares(_common.resample(totals, DRAWS, _common.SEED)))


# ---- LiDAR, alignment --------------------------------------------------------------------------


def lidar(x: Matrix, delta: float = DELTA) -> float:
    """Effective rank of the discriminant between images, of features (n, q, D): 1 to D.

    exp of the entropy of the eigenvalues of W^-1/2 B W^-1/2, B and W the scatter of the images'
    means and within images. Noise has nearly D: high LiDAR alone is no quality.
    """
    n, q, width = x.shape
    means = x.mean(axis=1)  # (n, q, D) -> (n, D)
    apart, inside = means - means.mean(axis=0), (x - means[:, None]).reshape(-1, width)
    w = inside.T @ inside / (n * q)
    mean = float(np.trace(w)) / width
    if not mean > ZERO * float((means**2).mean()):  # views do not differ: no unit to count in
        return _common.NAN
    energy, turn = np.linalg.eigh(w + delta * mean * np.eye(width))
    # The eigenvalues are the squared singular values of means in units of W^1/2.
    values = np.linalg.svd(apart @ (turn / np.sqrt(energy)), compute_uv=False) ** 2
    if not values.sum() > 0:
        return _common.NAN
    p = values / values.sum() + EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


def alignment(x: Matrix) -> Matrix:
    """Squared distance of two views of each image, of unit length: (n, q, D) -> (n,), 0 to 4."""
    one, two = (_common.unit(x[:, i]) for i in (0, 1))
    found: Matrix = ((one - two) ** 2).sum(axis=1)
    return found


# ---- the analysis ------------------------------------------------------------------------------


def _together(subject: Subject, rows: Rows, x: Matrix) -> list[Row]:
    noise = np.random.default_rng(_common.SEED).normal(size=x.shape)
    n = len(rows)
    return [
        subject.average("alignment", alignment(x), rows),
        row("uniformity", uniformity.uniformity(x[:, 0]), n),
        row("lidar", lidar(x), n),
        row("lidar_noise", lidar(noise), n),
    ]


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Invariance by augmentation; alignment, uniformity and LiDAR, with noise as control."""
    found: list[Row] = []
    for name, view in families(subject.source.side, subject.source.channels).items():
        whole = name == ALL
        rows = subject.draw(cfg.images if whole else min(cfg.images, LIGHT))
        if len(rows) < 2:
            return Finding(missing="the test split holds fewer than two images")
        x = features(subject, rows, view, MANY if whole else VIEWS)
        value, *ends = invariance(x, subject.rows.groups[rows])
        where = "all" if whole else f"augmentation:{name}"
        found.append(row("invariance", value, len(rows), where, (ends[0], ends[1])))
        found += _together(subject, rows, x) if whole else []
    bars = {
        r["slice"].rpartition(":")[2].replace("_", " "): {"invariance": r["value"]}
        for r in found
        if r["metric"] == "invariance"
    }
    title = "Share of variance between images, not views"
    return Finding(found, {"invariance": _pictures.bars(bars, title, "invariance")})
