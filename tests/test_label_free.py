"""Measures of the features' shape against closed forms; and what they say of noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_evaluate import FAST, RNG, blobs, made, value

from ssl_core.evaluate import alpha_req, rankme, tolerance, uniformity


def with_spectrum(values: np.ndarray, n: int = 400) -> np.ndarray:
    """Centred rows (n, D) whose covariance has these eigenvalues, up to one factor, rotated."""
    x = RNG(0).normal(size=(n, len(values)))
    q, _ = np.linalg.qr(x - x.mean(axis=0))
    turn, _ = np.linalg.qr(RNG(1).normal(size=(len(values), len(values))))
    return (q * np.sqrt(values)) @ turn


# ---- alpha-ReQ ---------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.7, 1.3])
def test_alpha_is_the_power_of_the_spectrum(power: float) -> None:
    x = with_spectrum(np.arange(1, 121) ** -power)
    assert alpha_req.alpha(x) == pytest.approx(power, abs=1e-6)
    assert alpha_req.alpha(1000 * x + 7) == pytest.approx(power, abs=1e-6)  # scale and place


def test_alpha_sees_its_range_only() -> None:
    spectrum = np.arange(1, 151) ** -1.0
    spectrum[:10] *= 50  # before the range
    spectrum[100:] /= 50  # and after it
    assert alpha_req.alpha(with_spectrum(spectrum)) == pytest.approx(1, abs=1e-6)
    assert alpha_req.alpha(with_spectrum(spectrum), 1, 150) > 1.2
    spectrum = np.r_[np.arange(1, 61) ** -2.0, np.zeros(60)]
    assert alpha_req.alpha(with_spectrum(spectrum)) == pytest.approx(2, abs=1e-6)  # without zeros


def test_alpha_without_a_range_is_nan() -> None:
    assert np.isnan(alpha_req.alpha(RNG(0).normal(size=(500, 19))))
    assert np.isfinite(alpha_req.alpha(RNG(0).normal(size=(500, 20))))
    assert np.isnan(alpha_req.alpha(np.ones((50, 40))))
    assert np.isnan(alpha_req.alpha(np.zeros((0, 40))))


# ---- controls ----------------------------------------------------------------------------------


def test_controls_do_not_depend_on_the_features() -> None:
    rng = RNG(0)
    plain = made(rng.normal(size=(150, 40)), np.zeros(150), 2)
    other = replace(plain, features=plain.features * np.geomspace(1, 0.01, 40, dtype=np.float32))
    for module, name in ((rankme, "rankme"), (alpha_req, "alpha_req")):
        one, two = (module.run(e, e, FAST) for e in (plain, other))
        assert value(one, "all", f"{name}_noise") == value(two, "all", f"{name}_noise")
        # Noise says of itself what the control says; features with a decaying spectrum do not.
        control = value(one, "all", f"{name}_noise")
        assert value(one, "all", name) == pytest.approx(control, rel=0.15)
        assert abs(value(two, "all", name) / control - 1) > 0.4


def test_centred_rankme_forgets_the_mean() -> None:
    x = RNG(1).normal(size=(100, 10)).astype(np.float32)
    far = made(x + 1000, np.zeros(100), 2)
    rows = rankme.run(far, far, FAST)
    assert value(rows, "all", "rankme") < 1.1
    want = rankme.rankme((x - x.mean(axis=0)).astype(np.float64))
    assert value(rows, "all", "rankme_centred") == pytest.approx(want, rel=1e-3)


# ---- uniformity --------------------------------------------------------------------------------


def pairs(x: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(x)) for j in range(i)]


def test_uniformity_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG(0).normal(size=(60, 7)) + 1
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = np.log(np.mean([np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i, j in pairs(u)]))
    assert uniformity.uniformity(x) == pytest.approx(want)
    monkeypatch.setattr(uniformity, "CHUNK", 7)
    assert uniformity.uniformity(5 * x) == pytest.approx(want)


def test_uniformity_closed_forms() -> None:
    assert uniformity.uniformity(np.ones((20, 3))) == pytest.approx(0)
    assert uniformity.uniformity(np.array([[1.0, 0], [-2, 0]])) == pytest.approx(-8)  # |x-y| = 2
    assert uniformity.uniformity(np.eye(5)) == pytest.approx(-4)  # all pairs at right angles
    assert np.isnan(uniformity.uniformity(np.ones((1, 3))))


@pytest.mark.parametrize("width", [2, 8, 64])
def test_the_lowest_is_what_the_uniform_distribution_reaches(width: int) -> None:
    x = RNG(0).normal(size=(3000, width))
    assert uniformity.uniformity(x) == pytest.approx(uniformity.lowest(width), abs=0.02)
    anything = x * np.linspace(0.2, 1, width) + 0.3
    assert uniformity.uniformity(anything) > uniformity.lowest(width) + 0.02


def test_many_rows_are_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG(0).normal(size=(2000, 5)) + 0.5
    whole = uniformity.uniformity(x)
    monkeypatch.setattr(uniformity, "LIMIT", 500)
    assert uniformity.uniformity(x) == pytest.approx(whole, abs=0.05)
    assert uniformity.uniformity(x) == uniformity.uniformity(x) != whole


# ---- tolerance ---------------------------------------------------------------------------------


def test_tolerance_is_its_definition() -> None:
    e = blobs(60, 0, spread=2.0)
    u = e.features / np.linalg.norm(e.features, axis=1, keepdims=True)
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for i, j in pairs(u):
        by_kind[bool(e.labels[i] == e.labels[j])].append(float(u[i] @ u[j]))
    same, different = tolerance.cosines(e.features, e.labels)
    assert same == pytest.approx(np.mean(by_kind[True]), abs=1e-6)
    assert different == pytest.approx(np.mean(by_kind[False]), abs=1e-6)


def test_tolerance_closed_forms() -> None:
    x, labels = np.eye(3)[[0, 0, 1, 1, 2]], np.array([0, 0, 1, 1, 2])
    assert tolerance.cosines(x, labels) == pytest.approx((1, 0))
    x[1] *= -9  # one class at opposite ends, one together
    assert tolerance.cosines(x, labels) == pytest.approx((0, 0))
    same, different = tolerance.cosines(np.ones((4, 2)), np.arange(4))
    assert np.isnan(same)
    assert different == pytest.approx(1)
    assert np.isnan(tolerance.cosines(np.zeros((0, 2)), np.array([], int))).all()


def test_tolerance_needs_labels_and_says_nan_without() -> None:
    e = blobs(20, 0)
    rows = tolerance.run(e, replace(e, labels=np.full(20, -1)), FAST)
    assert [r["n"] for r in rows] == [0, 0]
    assert np.isnan([r["value"] for r in rows]).all()
