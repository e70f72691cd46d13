"""Each detector by itself, against an independent oracle, and what it says in words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import sqrtm
from sklearn.metrics import roc_auc_score
from test_drift import RNG, classes, interval, photos, rows

from ssl_core.drift import (
    _common,
    _ks,
    domain_classifier,
    frechet,
    ks,
    label_shift,
    mmd,
    occupancy,
    quality,
)


def brute_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The estimate of Gretton et al., lemma 6, with loops."""
    pooled = np.concatenate([x, y])
    n = len(pooled)
    s2 = np.median([np.sum((pooled[i] - pooled[j]) ** 2) for i in range(n) for j in range(i)])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * s2)))

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    return float(xx + yy - 2 * np.mean([k(a, b) for a in x for b in y]))


@pytest.mark.parametrize(("n", "m"), [(9, 14), (2, 5)])
def test_mmd_is_the_brute_force_estimate_for_every_relabelling(n: int, m: int) -> None:
    x, y = RNG(0).normal(size=(n, 3)), RNG(1).normal(size=(m, 3)) + 0.5
    assert mmd.score(x, y, RNG(0), 9).statistic == pytest.approx(brute_mmd2(x, y))
    pooled = np.concatenate([x, y])
    squared = mmd.squared_distances(pooled)
    gram = np.exp(-squared / (2 * mmd.bandwidth(squared) ** 2))
    marks = _common.relabellings(n, n + m, 5, RNG(2))
    want = [brute_mmd2(pooled[c == 1], pooled[c == 0]) for c in marks.T]
    np.testing.assert_allclose(mmd.mmd2(gram, marks), want, atol=1e-12)


def test_mmd_finds_a_change_of_spread_and_may_be_negative() -> None:
    x, y = RNG(0).normal(size=(150, 3)), 2 * RNG(1).normal(size=(150, 3))
    assert mmd.score(x, y, RNG(0), 199).p_value < 1 / 200
    null = [mmd.score(rows(20, RNG(i)), rows(20, RNG(99 + i)), RNG(0), 19) for i in range(50)]
    values = [s.statistic for s in null]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 50**0.5


def test_mmd_in_blocks_sees_what_one_block_of_the_rows_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same rows: the mean of blocks is near the full estimate; and p is exact by blocks."""
    x, y = rows(400, RNG(0)), rows(400, RNG(1)) + 0.1
    whole = mmd.score(x, y, RNG(0), 99)
    monkeypatch.setattr(mmd, "BLOCK", 200)
    parts = mmd.score(x, y, RNG(0), 99)
    assert (whole.details["blocks"], parts.details["blocks"]) == (1, 4)
    assert parts.details["reference_rows"] == 400
    assert parts.statistic == pytest.approx(whole.statistic, abs=0.004)
    hits = [mmd.score(rows(300, RNG(i)), rows(300, RNG(500 + i)), RNG(i), 19) for i in range(60)]
    assert sum(s.p_value <= 0.1 for s in hits) <= interval(60, 0.1)[1]


def test_auc_is_scikit_learns_with_ties() -> None:
    margin = RNG(0).integers(0, 5, 40).astype(float)
    marks = _common.relabellings(15, 40, 6, RNG(1))
    found = domain_classifier.auc(stats.rankdata(margin), marks)
    np.testing.assert_allclose(found, [roc_auc_score(c, margin) for c in marks.T])


def test_the_classifier_learns_and_judges_on_different_images() -> None:
    half = rows(25, RNG(0))
    heap = _common.pile((half, half), None, 1000, RNG(0))  # everything twice
    learn = domain_classifier.split(heap, False, RNG(0))
    assert not {tuple(r) for r in heap.rows[learn]} & {tuple(r) for r in heap.rows[~learn]}
    few = ([0] * 24 + [1] * 24, [0] * 48)
    with pytest.raises(_common.TooFew, match="learn on one half"):
        domain_classifier.score(rows(48, RNG(0)), rows(48, RNG(1)), RNG(0), 19, few)


def test_frechet_is_the_formula_with_a_matrix_root() -> None:
    z, marks = rows(50, RNG(0)), _common.relabellings(20, 50, 3, RNG(1))
    for mark, found in zip(marks.T, frechet.distance(z, marks), strict=True):
        sides = [z[mark == 1], z[mark == 0]]
        s = [
            (1 - w) * np.cov(x.T, bias=True) + w * np.eye(5)
            for x in sides
            for w in [5 / (5 + len(x))]
        ]
        gap = sides[0].mean(0) - sides[1].mean(0)
        want = gap @ gap + np.trace(s[0] + s[1] - 2 * np.real(sqrtm(s[0] @ s[1])))
        assert found == pytest.approx(want)


def test_ks_is_scipys_and_names_what_changed() -> None:
    x, y = RNG(0).integers(0, 9, 40) + 0.0, RNG(1).integers(0, 9, 30) + 0.0
    pooled = np.concatenate([x, [np.nan], y])
    marks = np.r_[np.ones(41), np.zeros(30)][:, None]
    gap, size = _ks.distances(pooled, marks)
    assert gap[0] == pytest.approx(stats.ks_2samp(x, y).statistic)
    assert size[0] == pytest.approx(40 * 30 / 70)
    changed = rows(200, RNG(1))
    changed[:, 3] += 1
    assert ks.score(rows(200, RNG(0)), changed, RNG(0), 99).details["changed"] == [3]
    wide = RNG(0).normal(size=(60, 40))
    assert ks.score(wide, wide + 1, RNG(0), 99).details["reduced"]


def test_occupancy_names_new_and_vanished_concepts() -> None:
    x = rows(160, RNG(0))
    x[:80] += 20
    y = rows(160, RNG(1))
    y[:40] -= 20
    found = occupancy.score(x, y, RNG(0), 99)
    new, gone = found.details["new"], found.details["vanished"]
    assert {i for c in new for i in c["examples"]} <= set(range(40))
    assert {i for c in gone for i in c["examples"]} <= set(range(80))
    # Stray clusters of fewer rows than make a concept are not named.
    assert 0.2 < sum(c["current"] for c in new) <= 0.25
    assert 0.4 < sum(c["reference"] for c in gone) <= 0.5
    same = occupancy.score(rows(160, RNG(3)), rows(160, RNG(4)), RNG(0), 99).details
    assert same["new"] == same["vanished"] == []


def test_label_shift_recovers_how_much_more_frequent_classes_are() -> None:
    x, y = classes(4000, RNG(0)), classes(4000, RNG(1), (0.1, 0.2, 0.7))
    found = label_shift.score(x, y, RNG(0), 19).details
    np.testing.assert_allclose(list(found["shares"].values()), [0.1, 0.2, 0.7], atol=0.03)
    assert found["weights"]["c"] == pytest.approx(3.5, abs=0.25)
    blind = x.copy()
    blind[:, 0] = "a"
    assert "inverted" in label_shift.score(blind, x, RNG(0), 19).details["why"]
    x[:, 1] = ""
    assert label_shift.score(x, y, RNG(0), 19).details["weights"] is None


def test_quality_names_the_fault() -> None:
    x, y = photos(300, RNG(0)), photos(300, RNG(1))
    y[:, 3] -= 1
    found = quality.score(x, y, RNG(0), 99)
    assert found.details["changed"] == ["sharpness"]
    assert found.details["middle"]["sharpness"][0] > found.details["middle"]["sharpness"][1] + 0.5
    y = photos(300, RNG(1))
    y[:60, 0], y[:60, 1:] = 1, np.nan
    assert quality.score(x, y, RNG(0), 99).details["changed"] == ["rejected"]
