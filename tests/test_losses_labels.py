"""Losses with labels and VICRegL against loops in float64, lightly, and closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
import reference
import reference_labels as loops
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.losses import vicregl
from ssl_core.losses.cross_entropy import cross_entropy, prototype
from ssl_core.losses.supcon import supcon

T64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, -1, 1, -1, 0])
NONE = torch.full((8,), -1)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = T64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- SupCon


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_supcon_equals_the_paper(temperature: float, views: int) -> None:
    z = normal(views, 8, 5)
    want = loops.supcon(z.numpy(), LABELS.numpy(), temperature)
    assert supcon(z, LABELS, temperature).item() == pytest.approx(want, abs=1e-12)


def test_supcon_with_own_classes_is_nt_xent() -> None:
    z = normal(2, 8, 5)
    want = reference.nt_xent(z[0].numpy(), z[1].numpy(), 0.3)
    for labels in (torch.arange(8), NONE):  # unknown labels do not make a class
        assert supcon(z, labels, 0.3).item() == pytest.approx(want, abs=1e-12)


def test_supcon_collapsed_is_log_of_the_others() -> None:
    same = torch.ones(2, 6, 3, dtype=T64)
    for labels in (torch.zeros(6, dtype=torch.long), torch.arange(6) % 2):
        assert supcon(same, labels, 0.1).item() == pytest.approx(math.log(11))


def test_supcon_least_value_at_the_simplex_of_classes() -> None:
    """Classes on a simplex: each of n images of a class sees 2n-1 positives and the rest apart."""
    classes, n, t = 3, 4, 0.5
    means = torch.eye(classes, dtype=T64) - 1 / classes
    labels = torch.arange(classes).repeat_interleave(n)
    z = means[labels].expand(2, -1, -1)
    other = 2 * n * (classes - 1) * math.exp(-classes / ((classes - 1) * t))
    least = math.log(2 * n - 1 + other)
    assert supcon(z, labels, t).item() == pytest.approx(least)
    for seed in range(5):
        assert supcon(z + 0.1 * normal(2, 12, 3, seed=seed), labels, t).item() > least


def test_supcon_skips_anchors_without_positive() -> None:
    one = normal(1, 8, 5)
    assert supcon(one, NONE, 0.2).item() == 0
    lonely = torch.tensor([0, 0, 1, 2, -1, -1, 3, 4])  # two anchors have a positive
    pair = F.normalize(one[0], dim=1)
    s = (pair @ pair.T / 0.2).fill_diagonal_(-math.inf)
    want = (s.logsumexp(1)[:2] - s[0, 1]).mean()
    torch.testing.assert_close(supcon(one, lonely, 0.2), want)
    z = one.clone().requires_grad_()
    supcon(z, NONE, 0.2).backward()
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_supcon_pulls_a_class_together() -> None:
    """Gradient in s_ij is (P_ij - 1/|P(i)|) / t for positives, P_ij / t for the rest."""
    t = 0.3
    z = F.normalize(normal(8, 5), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    p = (z @ z.T / t).fill_diagonal_(-math.inf).softmax(1)
    same = (labels == labels[:, None]).double().fill_diagonal_(0)
    slope = (p - same / same.sum(1, keepdim=True)) / t / 8
    by_hand = (slope + slope.T) @ z
    by_hand -= (by_hand * z).sum(1, keepdim=True) * z  # projected on the sphere
    raw = z.clone().requires_grad_()
    supcon(raw.unsqueeze(0), labels, t).backward()
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad, by_hand)


def test_supcon_weights_images() -> None:
    z = normal(2, 8, 5)
    w = torch.tensor([0.5, 1.5, 1.0, 1.0, 2.0, 0.0, 1.0, 1.0], dtype=T64)
    slopes = []
    for i in range(8):  # linear in the weights: the losses of single anchors add up
        one = torch.zeros(8, dtype=T64)
        one[i] = 1
        slopes.append(supcon(z, LABELS, 0.2, one))
    torch.testing.assert_close(supcon(z, LABELS, 0.2, w), (torch.stack(slopes) * w).sum())
    torch.testing.assert_close(sum(slopes), supcon(z, LABELS, 0.2))


def test_supcon_refuses() -> None:
    z = normal(2, 8, 5)
    with pytest.raises(ValueError, match="must be positive"):
        supcon(z, LABELS, 0.0)
    with pytest.raises(ValueError, match=r"must be \(V, B, d\)"):
        supcon(z[0], LABELS, 0.1)
    with pytest.raises(ValueError, match=r"must be \(V, B, d\)"):
        supcon(z, LABELS[:3], 0.1)
    with pytest.raises(ValueError, match="at least 2 images"):
        supcon(z[:, :1], LABELS[:1], 0.1)


# --- cross-entropy and class prototypes


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_cross_entropy_equals_loops(smoothing: float, balanced: bool) -> None:
    logits = normal(8, 4)
    want = loops.cross_entropy(logits.numpy(), LABELS.numpy(), smoothing, balanced)
    got = cross_entropy(logits, LABELS, smoothing, balanced)
    assert got.item() == pytest.approx(want, abs=1e-12)


def test_balanced_cross_entropy_equals_drawing_classes_evenly() -> None:
    """The expectation of a batch whose classes are drawn first, then an image of the class."""
    logits, labels = normal(6, 3), torch.tensor([0, 0, 0, 0, 1, 2])
    log_p = logits.log_softmax(1)
    classes = [-log_p[labels == c, c].mean() for c in range(3)]
    torch.testing.assert_close(
        cross_entropy(logits, labels, balanced=True), torch.stack(classes).mean()
    )


def test_unlabelled_rows_take_no_part() -> None:
    logits = normal(8, 4).requires_grad_()
    cross_entropy(logits, LABELS, balanced=True).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(1) > 0
    assert torch.equal(touched, LABELS >= 0)
    far = logits.detach().clone()
    far[LABELS < 0] = 1e4
    torch.testing.assert_close(cross_entropy(far, LABELS), cross_entropy(logits.detach(), LABELS))


@pytest.mark.parametrize("balanced", [False, True])
def test_without_any_label_the_loss_is_zero_and_in_the_graph(balanced: bool) -> None:
    logits = normal(8, 4).requires_grad_()
    loss = cross_entropy(logits, NONE, balanced=balanced)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
    z, centres = normal(8, 5).requires_grad_(), normal(4, 5, seed=1).requires_grad_()
    for exclude in (False, True):
        loss = prototype(z, centres, NONE, 0.1, exclude)
        loss.backward()
        assert loss.item() == 0
    assert centres.grad is not None
    assert centres.grad.abs().max() == 0


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("exclude_own", [False, True])
def test_prototype_equals_loops(temperature: float, exclude_own: bool) -> None:
    z, centres = normal(8, 5), normal(4, 5, seed=1)
    want = loops.prototype(z.numpy(), centres.numpy(), LABELS.numpy(), temperature, exclude_own)
    got = prototype(z, centres, LABELS, temperature, exclude_own)
    assert got.item() == pytest.approx(want, abs=1e-12)


def test_prototype_closed_forms() -> None:
    labels = torch.arange(4)
    axes = torch.eye(4, dtype=T64)
    t = 0.5
    inside = math.log(1 + 3 * math.exp(-1 / t))
    assert prototype(7 * axes, 0.1 * axes, labels, t).item() == pytest.approx(inside)
    without = math.log(3) - 1 / t  # below 0: no lower bound of 0
    assert prototype(axes, axes, labels, t, exclude_own=True).item() == pytest.approx(without)
    same = torch.ones(4, 4, dtype=T64)
    assert prototype(same, same, labels, t).item() == pytest.approx(math.log(4))
    assert prototype(same, same, labels, t, exclude_own=True).item() == pytest.approx(math.log(3))


def test_prototype_learns_both_sides() -> None:
    z, centres = normal(4, 5).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    labels = torch.tensor([0, 2, -1, 1])
    for exclude in (False, True):
        assert torch.autograd.gradcheck(
            lambda a, b, own=exclude: prototype(a, b, labels, 0.3, own), (z, centres)
        )


def test_labelled_losses_refuse() -> None:
    logits = normal(8, 4)
    with pytest.raises(ValueError, match="label 2 must be below 2"):
        cross_entropy(normal(8, 2), LABELS)
    with pytest.raises(ValueError, match=r"must be \(N, C\), \(N,\)"):
        cross_entropy(logits, LABELS[:2])
    with pytest.raises(ValueError, match=r"smoothing 2 must lie in \[0, 1\]"):
        cross_entropy(logits, LABELS, smoothing=2)
    with pytest.raises(ValueError, match="must be positive"):
        prototype(logits, normal(3, 4), LABELS, -1.0)
    with pytest.raises(ValueError, match=r"must be \(N, d\), \(C, d\)"):
        prototype(logits, normal(3, 5), LABELS, 1.0)
    with pytest.raises(ValueError, match="a single class"):
        prototype(logits, normal(1, 4), torch.zeros(8, dtype=torch.long), 1.0, exclude_own=True)


# --- VICRegL

# Top, left, height, width, mirrored.
BOXES = torch.tensor(
    [[0.0, 0.0, 1.0, 1.0, 0], [0.1, 0.2, 0.5, 0.4, 1], [0.3, 0.0, 0.6, 0.9, 0]], dtype=T64
)
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0]] * 3, dtype=T64)


def lightly_vicregl(**options: float) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly's own imports
        from lightly.loss import VICRegLLoss
    return VICRegLLoss(**options)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1)])
def test_cells_equal_loops(grid: tuple[int, int]) -> None:
    got = vicregl.cells(BOXES, grid)
    want = [loops.centres(box, *grid) for box in BOXES.tolist()]
    torch.testing.assert_close(got, torch.tensor(want, dtype=T64))


def test_cells_lie_where_the_augmenter_cut() -> None:
    """A picture of its own coordinates tells where each cell comes from.

    lightly is no oracle here: its grid's last cells lie outside the crop.
    """
    from ssl_core.augment import Augmenter
    from ssl_core.types import View

    side = 64
    ramp = ((torch.arange(side) + 0.5) / side * 255).expand(side, side)
    picture = torch.stack([ramp.T, ramp, ramp]).byte().expand(16, 3, side, side)
    augmenter = Augmenter([View(32, (0.2, 1.0))], (0.0,) * 3, (1.0,) * 3)
    views, boxes = augmenter.with_boxes(picture, torch.Generator().manual_seed(0))
    assert 0 < boxes[0][:, 4].sum() < 16
    seen = F.avg_pool2d(views[0], 8)[:, :2].flatten(2).mT  # (16, 2, 4, 4) -> (16, 16, 2)
    assert (vicregl.cells(boxes[0], (4, 4)) - seen).abs().max() < 0.5 / side  # under half a pixel


@pytest.mark.parametrize("count", [1, 4, None])
def test_nearest_equals_brute_force(count: int | None) -> None:
    a, b = normal(3, 6, 4), normal(3, 5, 4, seed=1)
    mine, other = vicregl.nearest(a, b, count)
    for image in range(3):
        want = loops.nearest(a[image].numpy(), b[image].numpy(), count or 6)
        assert list(zip(mine[image].tolist(), other[image].tolist(), strict=True)) == want


def test_nearest_keeps_no_more_than_there_are() -> None:
    mine, other = vicregl.nearest(normal(2, 3, 4), normal(2, 9, 4, seed=1), 20)
    assert mine.shape == other.shape == (2, 3)


def test_the_same_crop_matches_each_cell_with_itself() -> None:
    at = vicregl.cells(BOXES, (4, 4))
    mine, other = vicregl.nearest(at, at, None)
    assert torch.equal(mine, other)
    assert mine.sort(1).values.equal(torch.arange(16).expand(3, 16))


def test_a_mirrored_crop_matches_mirrored_columns() -> None:
    mirrored = WHOLE.clone()
    mirrored[:, 4] = 1
    mine, other = vicregl.nearest(
        vicregl.cells(WHOLE, (3, 4)), vicregl.cells(mirrored, (3, 4)), None
    )
    assert torch.equal(mine // 4, other // 4)
    assert torch.equal(mine % 4, 3 - other % 4)


def test_a_crop_moved_by_k_cells_matches_k_cells_on() -> None:
    left = torch.tensor([[0.0, 0.0, 0.8, 0.5, 0]], dtype=T64)
    right = torch.tensor([[0.0, 0.25, 0.8, 0.5, 0]], dtype=T64)  # by two of four columns
    mine, other = vicregl.nearest(
        vicregl.cells(left, (4, 4)), vicregl.cells(right, (4, 4)), 8
    )  # the eight that overlap come first
    assert sorted(mine[0].tolist()) == [r * 4 + c for r in range(4) for c in (2, 3)]
    assert torch.equal(other % 4, mine % 4 - 2)
    assert torch.equal(other // 4, mine // 4)


@pytest.mark.parametrize("all_features", [False, True])
def test_local_pair_equals_loops(all_features: bool) -> None:
    a, b = normal(3, 12, 4), normal(3, 4, 4, seed=1)
    at_a, at_b = vicregl.cells(BOXES, (3, 4)), vicregl.cells(BOXES.flip(0), (2, 2))
    got = vicregl.local_pair(a, b, (at_a, at_b), (5, 2), all_features)
    want = loops.vicregl_pair(
        a.numpy(), b.numpy(), at_a.numpy(), at_b.numpy(), (5, 2), all_features
    )
    assert got.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
def test_vicregl_equals_lightly(alpha: float) -> None:
    """With the count used for both kinds of matching: that is lightly's reading."""
    wide, small = (6, 3, 3), (6, 2, 2)
    shapes = [wide, wide, small]
    maps = [normal(*s, 5, seed=i) for i, s in enumerate(shapes)]
    z = [normal(6, 7, seed=10 + i) for i in range(3)]
    boxes = [
        torch.rand(6, 5, generator=torch.Generator().manual_seed(i)).double() for i in range(3)
    ]
    places = [vicregl.cells(box, s[1:]) for box, s in zip(boxes, shapes, strict=True)]
    ours = alpha * vicregl.pooled(z) + (1 - alpha) * vicregl.maps(
        [m.flatten(1, 2) for m in maps], places, (4, 2), all_features=False
    )
    grids = [p.unflatten(1, s[1:]) for p, s in zip(places, shapes, strict=True)]
    pairs = list(zip(z, maps, strict=True))
    other = lightly_vicregl(alpha=alpha, num_matches=(4, 2))(
        pairs[:2], grids[:2], pairs[2:], grids[2:]
    )
    assert ours.item() == pytest.approx(other.item(), rel=1e-12)


def test_pooled_of_two_views_is_vicreg_with_half_the_covariance() -> None:
    from ssl_core.losses.vicreg import vicreg

    a, b = normal(6, 4), normal(6, 4, seed=1)
    want, terms = vicreg(a, b, (25.0, 25.0, 0.5))
    torch.testing.assert_close(vicregl.pooled([a, b]), want)
    assert terms["covariance"] > 0


def test_collapsed_maps_have_the_stationary_value() -> None:
    same = torch.ones(4, 9, 3, dtype=T64, requires_grad=True)
    at = vicregl.cells(WHOLE[:1].expand(4, 5), (3, 3))
    value = vicregl.maps([same, same], [at, at], (4, 2))
    value.backward()
    assert value.item() == pytest.approx(2 * 25 * 0.99)  # features and places
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-12


def test_location_matching_ignores_features() -> None:
    """Two crops of one map: what lies at one place is alike, wherever it is in the view."""
    field = normal(3, 12, 4)
    at = vicregl.cells(WHOLE, (3, 4))
    order = torch.tensor([5, 0, 11, 3, 8, 1, 10, 2, 7, 4, 9, 6])
    pairs = vicregl.nearest(at, at[:, order], None)
    inv_only = vicregl.local(field, field[:, order], pairs, (1.0, 0.0, 0.0))
    assert inv_only.item() == 0
    assert vicregl.local(field, field[:, order], (pairs[0], pairs[0]), (1.0, 0.0, 0.0)) > 0.1


def test_vicregl_gradients() -> None:
    a, b = normal(3, 4, 3).requires_grad_(), (normal(3, 6, 3, seed=1)).requires_grad_()
    at = (vicregl.cells(BOXES, (2, 2)), vicregl.cells(BOXES.flip(0), (2, 3)))
    assert torch.autograd.gradcheck(lambda x, y: vicregl.local_pair(x, y, at, (3, 2)), (a, b))
    z = [normal(4, 3, seed=i).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda *views: vicregl.pooled(views), z)


def test_vicregl_refuses() -> None:
    at = vicregl.cells(BOXES, (2, 2))
    with pytest.raises(ValueError, match="must be at least 2"):
        vicregl.pooled([normal(4, 3)])
    with pytest.raises(ValueError, match=r"must be \(B, L, D\|2\)"):
        vicregl.local_pair(normal(3, 5, 3), normal(3, 4, 3), (at, at), (2, 2))
    with pytest.raises(ValueError, match="at least 2 rows"):
        vicregl.local_pair(normal(1, 4, 3), normal(1, 4, 3), (at[:1], at[:1]), (2, 2))
