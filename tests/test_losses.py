"""Losses against loops in float64 (tests/reference.py), lightly, and closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
import reference
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.losses import dino, mae
from ssl_core.losses.nt_xent import nt_xent

T64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = T64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lightly_loss(name: str, **options: float) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly's own imports
        import lightly.loss
    return getattr(lightly.loss, name)(**options)


def pairs(n: int = 6, d: int = 5) -> tuple[Tensor, Tensor]:
    a = normal(n, d)
    return a, a + 0.5 * normal(n, d, seed=1)


# --- NT-Xent


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_nt_xent_equals_the_paper_and_lightly(temperature: float) -> None:
    a, b = pairs()
    ours = nt_xent(a, b, temperature).item()
    assert ours == pytest.approx(reference.nt_xent(a.numpy(), b.numpy(), temperature), abs=1e-12)
    other = lightly_loss("NTXentLoss", temperature=temperature)
    assert nt_xent(a.float(), b.float(), temperature).item() == pytest.approx(
        other(a.float(), b.float()).item(), abs=1e-5
    )


def test_nt_xent_gradient_is_pull_minus_push() -> None:
    """d l_i / d s_ij = P_ij / t for negatives, -(1 - P_ip) / t for the partner."""
    t, n = 0.3, 4
    z = F.normalize(normal(2 * n, 5), dim=1)
    s = z @ z.T
    p = (s / t).fill_diagonal_(-math.inf).softmax(1)
    partner = torch.arange(2 * n).roll(n)
    expected = p / t
    expected[torch.arange(2 * n), partner] -= 1 / t
    # Chain rule by hand: L = mean l_i, s_ij = z_i . z_j counted from both ends.
    by_hand = (expected + expected.T) @ z / (2 * n)
    by_hand -= (by_hand * z).sum(1, keepdim=True) * z  # projected on the sphere
    raw = z.clone().requires_grad_()
    nt_xent(raw[:n], raw[n:], t).backward()
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad, by_hand)
    assert (raw.grad * z).sum(1).abs().max() < 1e-12  # scale carries no gradient


def test_nt_xent_gradient_in_temperature() -> None:
    a, b = pairs()
    t, n, h = 0.4, len(a), 1e-5
    z = F.normalize(torch.cat([a, b]), dim=1)
    s = z @ z.T
    p = (s / t).fill_diagonal_(-math.inf).softmax(1)
    positive = s[torch.arange(2 * n), torch.arange(2 * n).roll(n)]
    expected = ((positive - (p * s).sum(1)) / t**2).mean().item()
    slope = (nt_xent(a, b, t + h) - nt_xent(a, b, t - h)).item() / (2 * h)
    assert slope == pytest.approx(expected, rel=1e-6)


def test_nt_xent_closed_forms() -> None:
    n = 5
    same = torch.ones(n, 3, dtype=T64)
    for t in (0.05, 0.5, 5.0):  # collapse
        assert nt_xent(same, same, t).item() == pytest.approx(math.log(2 * n - 1))
    a, b = pairs(n)
    assert nt_xent(a, b, 1e7).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    z = F.normalize(torch.cat([a, b]), dim=1)
    s = (z @ z.T).fill_diagonal_(-math.inf)
    gap = s.max(1).values - s[torch.arange(2 * n), torch.arange(2 * n).roll(n)]
    assert 1e-4 * nt_xent(a, b, 1e-4).item() == pytest.approx(gap.mean().item(), abs=1e-4)
    simplex = torch.eye(n, dtype=T64) - 1 / n  # aligned pairs, spread as far as possible
    t = 0.2
    least = math.log(1 + 2 * (n - 1) * math.exp(-n / ((n - 1) * t)))
    assert nt_xent(simplex, simplex, t).item() == pytest.approx(least)


def test_nt_xent_ignores_scale_rotation_and_order() -> None:
    a, b = pairs()
    base = nt_xent(a, b, 0.2)
    turn = torch.linalg.qr(normal(5, 5, seed=3)).Q
    torch.testing.assert_close(nt_xent(3 * a @ turn, 0.1 * b @ turn, 0.2), base)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nt_xent(a[order], b[order], 0.2), base)
    torch.testing.assert_close(nt_xent(b, a, 0.2), base)


# --- DINO


def dino_case(v: int = 4, k: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    return normal(v, 3, k), normal(2, 3, k, seed=1), 0.3 * normal(k, seed=2)


def test_dino_equals_the_paper_and_lightly() -> None:
    student, teacher, centre = dino_case()
    ours = dino.dino(student, dino.targets(teacher, centre, 0.07), 0.1).item()
    expected = reference.dino(student.numpy(), teacher.numpy(), centre.numpy(), 0.1, 0.07)
    assert ours == pytest.approx(expected, rel=1e-12)
    other = lightly_loss("DINOLoss", output_dim=7, teacher_temp=0.07, student_temp=0.1)
    other.center = centre.float().view(1, 1, -1)
    s, t = student.float(), teacher.float()
    theirs = other(list(t), list(s)).item()
    assert dino.dino(s, dino.targets(t, centre.float(), 0.07), 0.1).item() == pytest.approx(
        theirs, rel=1e-5
    )
    moved = centre.float().lerp(dino.batch_centre(t), 0.1)
    torch.testing.assert_close(moved, other.center.flatten(), rtol=1e-5, atol=1e-6)


def test_dino_gradient_and_entropy() -> None:
    student, teacher, centre = dino_case(v=2)
    target = dino.targets(teacher, centre, 0.07)
    s = student.clone().requires_grad_()
    dino.dino(s, target, 0.1).backward()
    p_s = (student / 0.1).softmax(-1)
    expected = (p_s - target.flip(0)) / (0.1 * 2 * 3)  # two pairs, three images
    torch.testing.assert_close(s.grad, expected)
    # Student = teacher, no centre, equal temperatures: the loss is the targets' entropy.
    twin = teacher[:1].expand(2, -1, -1)
    p = dino.targets(twin, torch.zeros(7, dtype=T64), 0.1)
    torch.testing.assert_close(dino.dino(twin, p, 0.1), dino.entropy(p))
    uniform = torch.full((2, 7), 1 / 7, dtype=T64)
    assert dino.entropy(uniform).item() == pytest.approx(math.log(7))


def test_dino_ignores_a_shift_per_sample() -> None:
    student, teacher, centre = dino_case()
    shift = normal(1, 3, 1, seed=5)
    base = dino.dino(student, dino.targets(teacher, centre, 0.07), 0.1)
    moved = dino.dino(student + shift, dino.targets(teacher + shift, centre, 0.07), 0.1)
    torch.testing.assert_close(moved, base)


def test_teacher_sharpens_to_one_hot_and_flattens() -> None:
    _, teacher, centre = dino_case()
    hot = dino.targets(teacher, centre, 1e-4)
    torch.testing.assert_close(hot, F.one_hot((teacher - centre).argmax(-1), 7).to(T64))
    flat = dino.targets(teacher, centre, 1e6)
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 7), atol=1e-5, rtol=0)


def test_teacher_temperature_meets_both_ends() -> None:
    values = [dino.warm_temperature(k, 4, 0.04, 0.07) for k in range(6)]
    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert dino.warm_temperature(0, 0, 0.04, 0.07) == pytest.approx(0.07)


# --- MAE


@pytest.mark.parametrize("norm_pix", [True, False])
def test_mae_equals_the_paper(norm_pix: bool) -> None:
    images, pred = normal(2, 3, 6, 9), normal(2, 6, 27, seed=1)
    hidden = normal(2, 6, seed=2) > 0
    ours = mae.mae(pred, mae.targets(images, 3, norm_pix), hidden).item()
    expected = reference.mae(pred.numpy(), images.numpy(), hidden.numpy(), 3, norm_pix)
    assert ours == pytest.approx(expected, rel=1e-12)


def test_patches_go_there_and_back() -> None:
    images = normal(2, 3, 8, 12)
    torch.testing.assert_close(mae.unpatchify(mae.patchify(images, 4), 4, (2, 3)), images)
    torch.testing.assert_close(
        mae.patchify(images, 4)[0, 4], images[0, :, 4:8, 4:8].permute(1, 2, 0).flatten()
    )


def test_mae_targets_ignore_contrast_and_constant_patches_are_zero() -> None:
    images = 100 * normal(2, 3, 16, 16)
    target = mae.targets(images, 16, True)
    torch.testing.assert_close(mae.targets(3 * images + 7, 16, True), target)
    hidden = torch.ones(2, 1, dtype=torch.bool)
    zero = mae.mae(torch.zeros_like(target), target, hidden).item()
    assert zero == pytest.approx(767 / 768, rel=1e-6)  # unbiased variance
    assert mae.targets(torch.full((1, 3, 4, 4), 0.3), 4, True).abs().max() < 1e-3


def test_mae_gives_seen_patches_no_gradient() -> None:
    images, pred = normal(2, 3, 8, 8), normal(2, 4, 48, seed=1).requires_grad_()
    hidden = torch.tensor([[True, False, True, False]] * 2)
    mae.mae(pred, mae.targets(images, 4, True), hidden).backward()
    assert pred.grad is not None
    assert pred.grad[:, 1::2].abs().max() == 0
    assert pred.grad[:, ::2].abs().min() > 0


def test_bad_arguments_are_named() -> None:
    a = torch.randn(4, 5)
    views = torch.randn(2, 4, 5)
    p = views.softmax(-1)
    bad = [
        (lambda: nt_xent(a, a, 0.0), "temperature"),
        (lambda: nt_xent(a, a, math.nan), "temperature"),
        (lambda: nt_xent(a[:1], a[:1], 0.2), "at least 2"),
        (lambda: nt_xent(a, a[:3], 0.2), "shapes"),
        (lambda: nt_xent(views, views, 0.2), "batch, dimension"),
        (lambda: dino.targets(views, torch.zeros(5), -0.1), "temperature"),
        (lambda: dino.targets(views, torch.zeros(4), 0.1), "shapes"),
        (lambda: dino.dino(views, p, 0.0), "temperature"),
        (lambda: dino.dino(views[:, :3], p, 0.1), "shapes"),
        (lambda: dino.dino(views[:1], p[:1], 0.1), "at least 2"),
        (lambda: mae.mae(views, views[..., :3], torch.ones(2, 4) > 0), "shapes"),
        (lambda: mae.mae(views, views, torch.ones(2, 3) > 0), "mask"),
        (lambda: mae.mae(views, views, torch.zeros(2, 4) > 0), "at least one"),
        (lambda: mae.patchify(torch.zeros(1, 3, 9, 8), 4), "multiples"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()
