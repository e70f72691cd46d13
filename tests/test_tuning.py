"""Analyses that train: equal starts, planted outcomes, slices by class frequency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted_subject
import pytest
import torch

from ssl_core.analyse import _tuning, fine_tune, supcon_ce
from ssl_core.analyse._subject import Subject
from ssl_core.config import Analyse


@pytest.fixture(scope="module")
def subject() -> Subject:
    return planted_subject.subject(kind="vit")


@pytest.fixture(scope="module")
def test_rows(subject: Subject) -> np.ndarray:
    return subject.draw(100, labelled=True)


def frozen(subject: Subject, rows: np.ndarray) -> np.ndarray:
    return _tuning.named(subject, subject.head.logits(subject.rows.features[rows]))


def test_lp_ft_starts_at_the_probe_and_zeros_do_not(
    subject: Subject, test_rows: np.ndarray
) -> None:
    """Without steps LP-FT is the probe and a head of zeros says the same of every image."""
    start = fine_tune.tuned(subject, "lp_ft", 0, test_rows)
    np.testing.assert_array_equal(start.predicted, frozen(subject, test_rows))
    np.testing.assert_allclose(
        start.features, subject.rows.features[test_rows], rtol=1e-4, atol=1e-4
    )
    assert len(set(fine_tune.tuned(subject, "fine_tune", 0, test_rows).predicted)) == 1


def coloured() -> Subject:
    """Classes are colours, which can be learned in a few steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    paint = np.array([[220, 60, 60], [60, 220, 60], [60, 60, 220]])[labels]
    pixels = paint[:, :, None, None] + rng.normal(0, 15, (96, 3, 32, 32))
    images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return planted_subject.of(planted_subject.encoder("vit"), images, labels)


def test_both_arms_learn_and_the_gain_is_paired() -> None:
    rows = fine_tune.run(coloured(), Analyse(images=24, steps=20)).rows
    value = {r["metric"]: r["value"] for r in rows if r["slice"] == "all"}
    assert value["lp_ft_accuracy"] > 0.9
    assert value["fine_tune_accuracy"] > 0.6  # its head started at zero
    gain = value["lp_ft_accuracy"] - value["fine_tune_accuracy"]
    assert value["lp_ft_gain"] == pytest.approx(gain)
    assert value["fine_tune_drift"] > 0
    assert value["lp_ft_drift"] > 0
    assert {r["slice"] for r in rows} == {"all", "source:here"}


def test_nothing_is_trained_at_zero_steps(subject: Subject) -> None:
    for module in (fine_tune, supcon_ce):
        assert "analyse.steps is 0" in module.run(subject, Analyse(steps=0)).missing


def test_drift_is_a_share_of_the_features_length() -> None:
    x, moved = np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([[1.0, 0], [0, -2.5]])
    np.testing.assert_allclose(fine_tune.drift(x, x), 0)
    np.testing.assert_allclose(fine_tune.drift(x, x + moved), [0.2, 0.5])


def test_classes_without_training_images_are_never_named(subject: Subject) -> None:
    labels = np.where((subject.rows.labels == 1) & subject.is_train, 0, subject.rows.labels)
    other = replace(subject, rows=replace(subject.rows, labels=labels))
    assert other.head.classes == ("cross", "square")
    test = other.draw(100, labelled=True)
    assert set(_tuning.codes(other)[test]) == {-1, 0, 1}
    assert set(frozen(other, test)) <= {0, 2}
    unknown = replace(other.rows, labels=np.where(np.arange(96) % 5, labels, -1))
    assert (_tuning.codes(replace(other, rows=unknown))[::5] == -1).all()


def test_both_arms_start_at_the_probe(subject: Subject, test_rows: np.ndarray) -> None:
    for cfg in supcon_ce.ARMS.values():
        net = supcon_ce.trained(subject, cfg, 0)
        np.testing.assert_array_equal(
            supcon_ce.predicted(subject, net, test_rows), frozen(subject, test_rows)
        )


def test_only_the_contrast_differs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same images and views in both arms; the contrast's weight falls from 1, or stays 0."""
    seen: dict[str, list[tuple[float, float]]] = {}
    plain = supcon_ce.method.Method.forward

    def record(self, views, step, labels):  # type: ignore[no-untyped-def]
        loss, monitors = plain(self, views, step, labels)
        pixels = float(torch.stack([v.sum() for v in views]).sum())
        seen.setdefault(self.cfg.curve, []).append((pixels, monitors["alpha"]))
        return loss, monitors

    monkeypatch.setattr(supcon_ce.method.Method, "forward", record)
    for cfg in supcon_ce.ARMS.values():
        supcon_ce.trained(subject, cfg, 4)
    assert [p for p, _ in seen["parabolic"]] == [p for p, _ in seen["constant"]]
    assert [a for _, a in seen["parabolic"]] == [1, 1 - 1 / 16, 1 - 4 / 16, 1 - 9 / 16]
    assert {a for _, a in seen["constant"]} == {0}


def test_thirds_are_of_classes_by_frequency() -> None:
    train = np.repeat([0, 1, 2, 3, 4, 5], [50, 3, 20, 1, 8, 30])
    test = np.array([0, 1, 2, 3, 4, 5, 5, 9])
    found = supcon_ce.thirds(train, test)
    assert {k: test[v].tolist() for k, v in found.items()} == {
        "rare": [1, 3],
        "middle": [2, 4],
        "frequent": [0, 5, 5],
    }


def test_gain_is_paired_and_by_third(subject: Subject) -> None:
    rows = supcon_ce.run(subject, Analyse(images=24, steps=2)).rows
    value = {(r["slice"], r["metric"]): r for r in rows}
    names = ("supcon_ce", "cross_entropy")
    ours, plain = (value["all", f"{n}_accuracy"]["value"] for n in names)
    assert value["all", "contrast_gain"]["value"] == pytest.approx(ours - plain)
    count = sum(value[f"classes:{t}", "contrast_gain"]["n"] for t in supcon_ce.THIRDS)
    assert count == value["all", "contrast_gain"]["n"]
