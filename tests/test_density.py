"""Density weights against scikit-learn's KernelDensity and by the invariants of rwSAM."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssl_core import density


def points(n: int = 60, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def two_groups(many: int = 90, few: int = 10, d: int = 8, spread: float = 0.05) -> np.ndarray:
    """Directions around two axes; the second group is rare."""
    rng = np.random.default_rng(1)
    centres = np.eye(d)[[0] * many + [1] * few]
    return (centres + spread * rng.normal(size=(many + few, d))).astype(np.float32)


@pytest.mark.parametrize("h", [0.3, 1.0, 4.0])
def test_log_density_equals_sklearn_one_left_out(h: float) -> None:
    from sklearn.neighbors import KernelDensity

    x = points(30)
    got = density.log_density(x, anchors=1000, seed=0, width=h)
    constant = -x.shape[1] / 2 * math.log(2 * math.pi * h * h)
    for i in range(len(x)):
        others = np.delete(x, i, axis=0)
        want = KernelDensity(bandwidth=h, rtol=1e-10).fit(others).score_samples(x[i : i + 1])[0]
        assert got[i] + constant == pytest.approx(want, abs=1e-7)


def test_anchors_stand_for_all_and_leave_only_themselves_out() -> None:
    x, h = points(200), 1.5
    rows = np.sort(np.random.default_rng(3).permutation(200)[:40])
    got = density.log_density(x, anchors=40, seed=3, width=h)
    for i in range(200):
        use = [r for r in rows if r != i]
        kernels = [math.exp(-((x[i] - x[r]) ** 2).sum() / (2 * h * h)) for r in use]
        assert got[i] == pytest.approx(math.log(sum(kernels) / len(use)), abs=1e-10)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = points(50, 6).astype(np.float32)
    whole = density.weights(features, 1.0)
    monkeypatch.setattr(density, "CHUNK", 7)
    np.testing.assert_allclose(density.weights(features, 1.0), whole, rtol=1e-5)


def test_median_heuristic_is_the_median_of_all_pairs() -> None:
    from scipy.spatial.distance import pdist

    x = points(30)
    # The median of squares lies between the same two pairs as that of the distances.
    assert density.bandwidth(x) == pytest.approx(np.median(pdist(x)), rel=1e-2)
    x = points(31, 3)  # 465 pairs, an odd number: one is the middle of both
    assert density.bandwidth(x) == pytest.approx(np.median(pdist(x)))
    assert density.bandwidth(3 * x) == pytest.approx(3 * density.bandwidth(x))


def test_reduce_equals_sklearn_pca_up_to_signs() -> None:
    from sklearn.decomposition import PCA

    x = points(80, 40) * np.linspace(3, 0.1, 40) + 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = PCA(32, svd_solver="full").fit_transform(unit)
    got = density.reduce(x)
    assert got.shape == (80, 32)
    np.testing.assert_allclose(np.abs(got), np.abs(want), atol=1e-8)


def test_weights_have_mean_one_and_favour_the_rare() -> None:
    features = two_groups()
    got = density.weights(features, 1.0)
    assert got.dtype == np.float32
    assert got.shape == (100,)
    assert got.mean() == pytest.approx(1, abs=1e-6)
    assert got[90:].min() > 2 * got[:90].max()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_ten_times_denser_weighs_ten_to_the_alpha_less(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far apart, tight groups of 101 and 11: each row has 100 and 10 neighbours left."""
    features = two_groups(101, 11, spread=1e-4)
    monkeypatch.setattr(density, "bandwidth", lambda _points: 0.05)
    got = density.weights(features, alpha)
    assert got[-1] / got[0] == pytest.approx(10**alpha, rel=2e-3)


def test_scale_of_features_and_order_of_rows_do_not_matter() -> None:
    features = two_groups()
    want = density.weights(features, 1.0)
    lengths = np.random.default_rng(0).uniform(0.1, 9, size=(100, 1)).astype(np.float32)
    np.testing.assert_allclose(density.weights(features * lengths, 1.0), want, rtol=1e-3)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_allclose(density.weights(features[order], 1.0), want[order], rtol=1e-4)


def test_edges() -> None:
    assert density.weights(points(5).astype(np.float32), 0.0).tolist() == [1.0] * 5
    assert density.weights(points(1).astype(np.float32), 1.0).tolist() == [1.0]
    same = np.ones((20, 4), dtype=np.float32)
    np.testing.assert_allclose(density.weights(same, 1.0), 1.0)
    np.testing.assert_allclose(density.weights(0 * same, 1.0), 1.0)
    mostly = np.concatenate([same, np.eye(4, dtype=np.float32)[:2]])
    got = density.weights(mostly, 1.0)  # most pairs are copies: their median says nothing
    assert np.isfinite(got).all()
    assert got[-1] > got[0]
    with pytest.raises(ValueError, match="must be finite"):
        density.weights(np.full((4, 2), np.nan, dtype=np.float32), 1.0)
    with pytest.raises(ValueError, match=r"must be \(N, D\)"):
        density.reduce(np.ones(4, dtype=np.float32))
    with pytest.raises(ValueError, match="must not be negative"):
        density.weights(same, -1.0)


def test_a_seed_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    features = points(100, 6).astype(np.float32)
    monkeypatch.setattr(density, "ANCHORS", 30)
    first = density.weights(features, 1.0, seed=4)
    assert np.array_equal(first, density.weights(features, 1.0, seed=4))
    assert not np.array_equal(first, density.weights(features, 1.0, seed=5))
    monkeypatch.setattr(density, "ANCHORS", 4096)
    exact = density.weights(features, 1.0)
    assert np.corrcoef(np.log(first), np.log(exact))[0, 1] > 0.8
