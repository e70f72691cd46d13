"""Masks, segmentation, discovery, boxes and correspondence: planted maps and other libraries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import planted_subject
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix, jaccard_score

from ssl_core.analyse import (
    _discover,
    _masks,
    _tokens,
    correspondence,
    discovery,
    localisation,
    segmentation,
)
from ssl_core.analyse._subject import NOT_JUDGED, Subject
from ssl_core.config import Analyse

RNG = np.random.default_rng
CFG = Analyse(images=48)
Read = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return planted_subject.subject(tmp_path_factory.mktemp("masks"), "cnn")


def ink(x: torch.Tensor) -> torch.Tensor:
    """Normalised images -> 8 x 8 maps (B, 8, 8, 2) of how dark each cell is, and how light."""
    dark = torch.nn.functional.adaptive_avg_pool2d(-x.mean(1, keepdim=True), 8)
    return torch.cat([dark, -dark], 1).permute(0, 2, 3, 1)


def seeing(monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    """Every encoder's dense map is now what ``read`` makes of normalised images."""

    def dense(_: object, x: torch.Tensor) -> list[_tokens.Layer]:
        return [_tokens.Layer("planted", read(x), x.new_zeros(len(x), 0, 0))]

    monkeypatch.setattr(_tokens, "dense", dense)


def values(rows: list[dict]) -> dict[str, float]:
    return {r["metric"]: r["value"] for r in rows if ":" not in r["slice"]}


# ---- masks -------------------------------------------------------------------------------------


def test_iou_is_scikit_learns_and_leaves_out_what_is_not_judged() -> None:
    rng = RNG(0)
    found = rng.random((5, 12, 12)) < 0.4
    masks = rng.choice([0, 1, 3, NOT_JUDGED], (5, 12, 12)).astype(np.uint8)
    masks[4] = 0  # nothing to find
    got = _masks.iou(found, masks)
    for i in range(4):
        judged = masks[i] != NOT_JUDGED
        want = jaccard_score(masks[i][judged] > 0, found[i][judged])
        assert got[i] == pytest.approx(want)
    assert np.isnan(got[4])


def test_cells_and_pixels_fit_each_other() -> None:
    cells = RNG(0).random((3, 4, 4)) < 0.5
    large = _masks.enlarged(cells, 12)
    np.testing.assert_array_equal(large, cells.repeat(3, 1).repeat(3, 2))
    np.testing.assert_array_equal(_masks.shares(large, (4, 4)), cells)
    half = np.zeros((1, 12, 12), np.bool_)
    half[0, :, :2] = True
    np.testing.assert_allclose(_masks.shares(half, (4, 4))[0, :, 0], 2 / 3)


def test_boxes_overlap_as_their_masks_do() -> None:
    rng = RNG(0)
    for _ in range(50):
        (t1, t2), (l1, l2) = np.sort(rng.choice(11, (2, 2), replace=False) + 0, axis=1)
        a, b = np.zeros((2, 16, 16), np.bool_)
        a[t1 : t2 + 1, l1 : l2 + 1] = True
        b[2:9, 3:12] = True
        boxes = _masks.box(a), _masks.box(b)
        assert boxes[0] == (t1, l1, t2 + 1, l2 + 1)
        want = (a & b).sum() / (a | b).sum()
        assert _masks.box_iou(*boxes) == pytest.approx(want)
    assert _masks.box(np.zeros((4, 4), np.bool_)) is None


# ---- segmentation ------------------------------------------------------------------------------


def test_confusion_is_scikit_learns_and_adds_up() -> None:
    rng = RNG(1)
    truth = rng.choice([0, 1, 2, NOT_JUDGED], (6, 9, 9))
    found = rng.integers(0, 3, (6, 9, 9))
    whole = segmentation.confusion(truth, found, 3)
    judged = truth != NOT_JUDGED
    np.testing.assert_array_equal(whole, confusion_matrix(truth[judged], found[judged]))
    parts = [segmentation.confusion(t, f, 3) for t, f in zip(truth, found, strict=True)]
    np.testing.assert_array_equal(sum(parts), whole)
    want = jaccard_score(truth[judged], found[judged], average=None)
    np.testing.assert_allclose(segmentation.ious(whole), want)
    assert float(segmentation.miou(whole)) == pytest.approx(want.mean())


def test_miou_closed_forms() -> None:
    perfect = np.diag([50, 30, 20])
    assert float(segmentation.miou(perfect)) == 1
    constant = np.array([[60, 0], [40, 0]])  # everything is called class 0
    assert float(segmentation.miou(constant)) == pytest.approx(0.3)
    absent = np.diag([50, 0, 20])  # class 1 occurs nowhere
    assert float(segmentation.miou(absent)) == 1
    assert np.isnan(segmentation.ious(absent)[1])


def test_maps_that_know_the_object_are_segmented_and_noise_is_not(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing(monkeypatch, ink)
    found = values(segmentation.run(subject, CFG).rows)
    assert found["miou"] > 0.8  # 4-px cells, drawn edges
    assert found["pixel_accuracy"] > 0.9
    draw = torch.Generator().manual_seed(0)
    seeing(monkeypatch, lambda x: torch.randn(len(x), 8, 8, 2, generator=draw))
    noise = values(segmentation.run(subject, CFG).rows)
    assert noise["miou"] < noise["miou_of_commonest_class"] + 0.05


def test_test_masks_change_no_prediction(
    tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing(monkeypatch, ink)
    rows = _masks.rows(subject, 48, "train"), _masks.rows(subject, 12)
    first = segmentation.judge(subject, *rows)
    for number in rows[1]:
        Image.fromarray(np.ones((32, 32), np.uint8)).save(subject.masks.files[number])
    again = segmentation.judge(subject, *rows)
    np.testing.assert_array_equal(first.found, again.found)
    assert (again.truth == 1).all()
    for number, mask in zip(rows[1], first.truth, strict=True):  # as they were
        Image.fromarray(mask.astype(np.uint8)).save(subject.masks.files[number])


def test_classes_that_training_lacks_and_what_is_not_judged_are_left_out() -> None:
    masks = np.array([[[0, 7], [9, NOT_JUDGED]]], np.uint8)
    found = segmentation._numbered(masks, (0, 7))
    np.testing.assert_array_equal(found, [[[0, 1], [NOT_JUDGED, NOT_JUDGED]]])


# ---- discovery and boxes -----------------------------------------------------------------------


def test_the_mass_is_held_by_the_fewest_cells() -> None:
    scores = RNG(0).random((20, 6, 6))
    found = _discover.by_mass(scores, 0.6)
    for score, mask in zip(scores, found, strict=True):
        share = score / score.sum()
        assert share[mask].sum() >= 0.6 - 1e-9
        assert share[mask].sum() - share[mask].min() < 0.6
        assert score[mask].min() >= score[~mask].max()
    even = np.ones((1, 2, 5))
    assert _discover.by_mass(even, 0.6).sum() == 6


def test_the_threshold_parts_with_least_variance_within() -> None:
    for seed in range(5):
        values = RNG(seed).normal(size=30) + 4 * (RNG(seed).random(30) < 0.4)

        def within(cut: float, values: np.ndarray = values) -> float:
            parts = values[values > cut], values[values <= cut]
            return sum(len(p) * p.var() for p in parts if len(p))

        best = min(within(v) for v in values)
        assert within(_discover.threshold(values)) == pytest.approx(best)


@pytest.mark.parametrize("width", [5, 300])
def test_components_are_scikit_learns(width: int) -> None:
    maps = RNG(0).normal(size=(4, 5, 5, width)) * np.geomspace(3, 0.1, width)
    found = _discover.components(maps, 3).reshape(-1, 3)
    want = PCA(3, svd_solver="full").fit_transform(maps.reshape(-1, width))
    np.testing.assert_allclose(np.abs(found), np.abs(want), atol=1e-6)
    assert (_discover.components(maps[..., :2], 3)[..., 2] == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_object_is_what_does_not_reach_the_border(sign: int) -> None:
    rng = RNG(0)
    inside = np.zeros((6, 8, 8), np.bool_)
    inside[:, 2:6, 3:7] = True
    away = rng.normal(size=(6, 1, 1, 10))  # every image has a direction of its own
    maps = inside[..., None] * away * sign + 0.05 * rng.normal(size=(6, 8, 8, 10))
    masks, scores = _discover.by_component(maps)
    np.testing.assert_array_equal(masks, inside)
    assert (scores[inside].mean() - scores[~inside].mean()) > 0


def test_a_disc_covers_the_share_it_should() -> None:
    assert _discover.centred(200, 0.5).mean() == pytest.approx(0.5, abs=0.002)


def test_discovery_and_boxes_of_maps_that_show_the_object(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing(monkeypatch, ink)
    found = values(discovery.run(subject, CFG).rows)
    assert found["iou_pca"] > 0.9 * found["iou_grid"]
    assert found["iou_everything"] < found["iou_disc"] < found["iou_grid"] <= 1
    truth = _masks.true(subject, _masks.rows(subject, 48))
    assert found["iou_everything"] == pytest.approx((truth > 0).mean((1, 2)).mean())
    boxes = values(localisation.run(subject, CFG).rows)
    assert boxes["corloc_pca"] > 0.9
    assert boxes["corloc_pca"] > boxes["corloc_everything"]


def test_attention_is_the_class_tokens_in_the_last_block(tmp_path: Path) -> None:
    vit = planted_subject.subject(tmp_path)
    rows = vit.draw(4)
    with torch.inference_mode():
        want = _tokens.attentions(vit.encoder, vit.inputs(rows))[-1][:, :, 0, 1:].mean(1)
    got = _discover.by_attention(vit, rows).reshape(4, -1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_register_is_no_class_token(tmp_path: Path) -> None:
    args = {"class_token": False, "global_pool": "avg", "reg_tokens": 2}
    vit = planted_subject.subject(tmp_path, **args)
    assert list(_discover.find(vit, vit.draw(4)).masks) == ["pca"]


def test_boxes_surround_the_largest_part_and_misses_count() -> None:
    truth = np.zeros((4, 10, 10), np.bool_)
    truth[:3, 2:6, 2:6] = True  # the last image holds nothing
    found = truth.copy()
    found[0, 9, 9] = True  # a speck far off
    found[1] = False
    found[2, 2:6, 4:6] = False
    overlap = localisation.overlaps(found, truth)
    np.testing.assert_allclose(overlap[:3], [1, 0, 0.5])
    assert np.isnan(overlap[3])


# ---- correspondence ----------------------------------------------------------------------------


def test_points_move_as_pixels_do() -> None:
    """A picture whose values are its own coordinates tells where a warp took them from."""
    draw = torch.Generator().manual_seed(0)
    first, second = (correspondence.warps(6, draw) for _ in range(2))
    grid = correspondence.centres((64, 64)).T.reshape(1, 2, 64, 64).expand(6, 2, 64, 64)
    views = [correspondence.warped(grid, warp) for warp in (first, second)]
    points = correspondence.centres((8, 8))
    there, inside = correspondence.moved(points, first, second)
    assert 0.2 < inside.double().mean() < 1

    def at(view: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        where = places.float().unsqueeze(1)
        return torch.nn.functional.grid_sample(view, where, align_corners=False)[:, :, 0].mT

    came = at(views[0], points.expand(6, -1, -1))  # of the image, seen at a point of the first view
    again = at(views[1], there)
    clear = inside & (came.abs().amax(-1) < 0.95) & (there.abs().amax(-1) < 0.95)
    torch.testing.assert_close(came[clear], again[clear], atol=0.01, rtol=0)


def test_no_warp_and_a_shift_by_whole_patches_are_found_again() -> None:
    maps = torch.randn(5, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    still = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    shift = still.clone()
    shift[:, 0, 2] = 2 * 2 / 8  # the second view lies two cells to the right
    made = correspondence.Views((torch.zeros(0), torch.zeros(0)), (still, shift))
    found = correspondence.pck(maps, maps.roll(-2, 2), made, None)
    assert (found["pck_0.1"] == 1).all()
    assert (found["pck_0.2_unmoved"] == 0).all()  # two of eight cells are a quarter of the side
    noise = torch.randn(5, 8, 8, 16, generator=torch.Generator().manual_seed(1))
    lost = correspondence.pck(maps, noise, made, None)
    assert abs(lost["pck_0.2"].mean() - lost["pck_0.2_chance"].mean()) < 0.06


def test_chance_counts_the_cells_nearby() -> None:
    still = torch.eye(3, dtype=torch.float64).expand(1, 3, 3)
    made = correspondence.Views((torch.zeros(0), torch.zeros(0)), (still, still))
    maps = torch.randn(1, 5, 5, 4)
    found = correspondence.pck(maps, maps, made, None)
    near = [  # one cell is a fifth of the side
        sum(abs(y - v) + abs(x - u) <= 1 for v, u in itertools.product(range(5), repeat=2)) / 25
        for y, x in itertools.product(range(5), repeat=2)
    ]
    assert float(found["pck_0.2_chance"]) == pytest.approx(np.mean(near))
    asked = torch.zeros(1, 25, dtype=torch.bool)
    asked[0, 12] = True  # the middle
    alone = correspondence.pck(maps, maps, made, asked)
    assert float(alone["pck_0.2_chance"]) == pytest.approx(5 / 25)


def test_pairs_are_of_one_class_and_of_two_groups(subject: Subject) -> None:
    chosen = subject.draw(96)
    first, second = (chosen[p] for p in correspondence.pairs(subject, chosen))
    assert len(first) > 10
    labels, groups = subject.rows.labels, subject.rows.groups
    assert (labels[first] == labels[second]).all()
    assert (groups[first] != groups[second]).all()


def test_patches_of_an_object_land_on_objects_if_maps_show_them(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing(monkeypatch, ink)
    rows = correspondence.across_images(subject, 96)
    found = {r["metric"]: r["value"] for r in rows}
    assert found["on_object"] > 0.85
    draw = torch.Generator().manual_seed(0)
    seeing(monkeypatch, lambda x: torch.randn(len(x), 8, 8, 4, generator=draw))
    rows = correspondence.across_images(subject, 96)
    lost = {r["metric"]: r["value"] for r in rows}
    assert abs(lost["on_object"] - lost["on_object_chance"]) < 0.12
