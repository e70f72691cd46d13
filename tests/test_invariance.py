"""Invariance, LiDAR and alignment against analysis of variance, closed forms and planted nets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted_subject
import pytest
import torch
from scipy.linalg import eigh
from scipy.stats import binom, f_oneway
from torch import Tensor, nn

from ssl_core.analyse import invariance
from ssl_core.analyse._subject import Subject
from ssl_core.config import Analyse

RNG = np.random.default_rng


def views(n: int, q: int, width: int, share: float, seed: int = 0) -> np.ndarray:
    """Features (n, q, D) of which a ``share`` of variance is the image's."""
    rng = RNG(seed)
    own, noise = rng.normal(size=(n, 1, width)), rng.normal(size=(n, q, width))
    return np.sqrt(share) * own + np.sqrt(1 - share) * noise


def ids(n: int) -> np.ndarray:
    return np.arange(n).astype(str)


# ---- invariance --------------------------------------------------------------------------------


def test_invariance_is_the_f_statistic_of_the_analysis_of_variance() -> None:
    x = views(30, 4, 1, 0.4)
    f = f_oneway(*x[:, :, 0]).statistic
    want = (f - 1) / (f - 1 + 4)
    assert invariance.invariance(x, ids(30))[0] == pytest.approx(want)


@pytest.mark.parametrize(("share", "near"), [(1, 1e-9), (0.5, 0.02), (0, 0.02)])
def test_invariance_closed_forms(share: float, near: float) -> None:
    x = views(600, 4, 20, share)
    assert invariance.invariance(x, ids(600))[0] == pytest.approx(share, abs=near)


def test_invariance_ignores_scale_place_and_rotation() -> None:
    x = views(50, 3, 6, 0.6) * np.linspace(1, 4, 6)
    turn, _ = np.linalg.qr(RNG(1).normal(size=(6, 6)))
    want = invariance.invariance(x, ids(50))
    assert invariance.invariance(1000 * x @ turn + 1e4, ids(50)) == pytest.approx(want)
    assert np.isnan(invariance.invariance(np.ones((5, 3, 2)), ids(5))[0])


def test_invariance_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(100):
        _, low, high = invariance.invariance(views(80, 3, 5, 0.5, seed), ids(80))
        covered += low <= 0.5 <= high
    assert covered >= binom.ppf(0.001, 100, 0.9)
    assert np.isnan(invariance.invariance(views(9, 3, 5, 0.5), np.array(["one"] * 9))[1:]).all()


# ---- LiDAR -------------------------------------------------------------------------------------


def reference(x: np.ndarray, delta: float) -> float:
    """The paper's eigenvalues as a generalised problem: B v = lambda W v."""
    n, q, width = x.shape
    means = x.mean(1)
    b = sum(np.outer(m, m) for m in means - means.mean(0)) / n
    w = sum(np.outer(d, d) for i in range(n) for d in x[i] - means[i]) / (n * q)
    values = eigh(b, w + delta * np.trace(w) / width * np.eye(width), eigvals_only=True)
    p = values.clip(0) / values.clip(0).sum() + 1e-8
    return float(np.exp(-(p * np.log(p)).sum()))


def test_lidar_is_the_generalised_eigenvalues() -> None:
    x = views(60, 5, 8, 0.3) * np.linspace(0.2, 3, 8)
    assert invariance.lidar(x) == pytest.approx(reference(x, invariance.DELTA), rel=1e-6)
    few = views(5, 4, 8, 0.3)  # fewer images than dimensions
    assert invariance.lidar(few) == pytest.approx(reference(few, invariance.DELTA), rel=1e-4)
    assert invariance.lidar(few) <= 4.01


def test_lidar_counts_directions_that_tell_images_apart() -> None:
    rng = RNG(0)
    signal = np.zeros((1000, 1, 20))
    signal[..., :5] = 10 * rng.normal(size=(1000, 1, 5))
    x = signal + rng.normal(size=(1000, 10, 20))
    assert 5 <= invariance.lidar(x) < 5.3
    noise = rng.normal(size=(1000, 10, 20))
    assert invariance.lidar(noise) > 19  # why noise stands beside it


def test_lidar_ignores_scale_and_with_no_ridge_any_linear_map() -> None:
    x = views(200, 6, 7, 0.4) * np.linspace(1, 3, 7)
    assert invariance.lidar(100 * x + 5) == pytest.approx(invariance.lidar(x), rel=1e-6)
    skew = RNG(1).normal(size=(7, 7))
    assert invariance.lidar(x @ skew, 0.0) == pytest.approx(invariance.lidar(x, 0.0), rel=1e-6)
    assert np.isnan(invariance.lidar(np.ones((5, 3, 2))))
    assert np.isnan(invariance.lidar(RNG(0).normal(size=(5, 1, 2)).repeat(3, 1)))  # no W


# ---- alignment ---------------------------------------------------------------------------------


def test_alignment_closed_forms() -> None:
    x = RNG(0).normal(size=(9, 3, 4))
    same, across = x.copy(), x.copy()
    same[:, 1], across[:, 1] = 7 * x[:, 0], -x[:, 0]
    np.testing.assert_allclose(invariance.alignment(same), 0, atol=1e-12)
    np.testing.assert_allclose(invariance.alignment(across), 4)
    right = np.broadcast_to(np.eye(2), (3, 2, 2))
    np.testing.assert_allclose(invariance.alignment(right), 2)


# ---- views of images ---------------------------------------------------------------------------


class Colour(nn.Module):
    """The mean of each channel: no flip changes it, and grey does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((2, 3))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return planted_subject.subject(kind="vit")


def test_views_left_alone_have_the_features_of_the_images(subject: Subject) -> None:
    rows = subject.draw(16)
    view = replace(invariance.families(subject.source.side)["flip"], flip=0.0)
    x = invariance.features(subject, rows, view, 2)
    want = subject.features(subject.source.take(rows))
    for i in range(2):
        np.testing.assert_allclose(x[:, i], want, rtol=1e-4, atol=1e-4)


def test_colour_is_not_changed_where_there_is_none() -> None:
    images, _, labels = planted_subject.drawn(96, channels=5)
    grey = planted_subject.of(planted_subject.encoder("vit", in_chans=5), images, labels)
    names = {r["slice"] for r in invariance.run(grey, Analyse(images=16)).rows}
    assert "augmentation:blur" in names
    assert not names & {"augmentation:colour", "augmentation:grey"}


def test_a_planted_invariance_is_found(subject: Subject) -> None:
    planted = replace(subject, encoder=Colour())
    found = {
        r["slice"].removeprefix("augmentation:"): r["value"]
        for r in invariance.run(planted, Analyse(images=24)).rows
        if r["metric"] == "invariance"
    }
    assert set(found) == {*invariance.families(32)}
    assert found["flip"] == pytest.approx(1, abs=1e-6)
    assert found["blur"] > 0.999
    assert found["brightness_contrast"] < 0.9
    assert found["solarise"] < 0.9
    assert found["all"] < found["blur"]


def test_lidar_stands_beside_its_noise(subject: Subject) -> None:
    rows = {r["metric"]: r for r in invariance.run(subject, Analyse(images=24)).rows[:5]}
    assert list(rows) == ["invariance", "alignment", "uniformity", "lidar", "lidar_noise"]
    assert {r["slice"] for r in rows.values()} == {"all"}
    assert rows["lidar"]["value"] < rows["lidar_noise"]["value"] <= 24
