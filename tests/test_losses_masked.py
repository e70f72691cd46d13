"""Losses of iBOT, DINOv2, SimMIM, MSN and PMSN against loops, lightly, and closed forms."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import reference_masked as reference
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.losses import dino, mae, msn
from ssl_core.losses.ibot import ibot
from ssl_core.losses.koleo import koleo
from ssl_core.losses.simmim import simmim
from ssl_core.losses.sinkhorn import balance, sinkhorn

T64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = T64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lightly(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly's own imports
        import lightly.loss
        import lightly.loss.msn_loss
    return getattr(lightly.loss, name, None) or getattr(lightly.loss.msn_loss, name)


# --- iBOT


def patches() -> tuple[Tensor, Tensor, Tensor]:
    """Student's logits, targets (4, 6, 7), and a mask; image 2 has nothing masked."""
    rows = [[1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0]]
    mask = torch.tensor(rows, dtype=torch.bool)
    return normal(4, 6, 7), (normal(4, 6, 7, seed=1) / 0.3).softmax(-1), mask


def test_ibot_equals_the_paper_and_lightly() -> None:
    student, target, mask = patches()
    ours = ibot(student[mask], target[mask], mask, 0.1).item()
    want = reference.ibot(student.numpy(), target.numpy(), mask.numpy(), 0.1)
    assert ours == pytest.approx(want, rel=1e-12)
    logits, s = normal(4, 6, 7, seed=3).float()[mask], student.float()[mask]
    centre = 0.2 * normal(7, seed=4).float()
    other = lightly("IBOTPatchLoss")(output_dim=7, teacher_temp=0.07, student_temp=0.1)
    other.center.center.copy_(centre)
    theirs = other(logits, s, mask.view(4, 2, 3)).item()
    q = dino.targets(logits.unsqueeze(0), centre, 0.07)[0]
    assert ibot(s, q, mask, 0.1).item() == pytest.approx(theirs, rel=1e-5)


def test_ibot_without_masked_patches_is_zero_with_a_zero_gradient() -> None:
    student = torch.zeros(0, 7, requires_grad=True)
    weight = torch.ones(7, 7, requires_grad=True)
    value = ibot(student @ weight, torch.zeros(0, 7), torch.zeros(3, 6, dtype=torch.bool), 0.1)
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_ibot_with_all_masked_is_the_plain_mean() -> None:
    student, target, _ = patches()
    mask = torch.ones(4, 6, dtype=torch.bool)
    ours = ibot(student[mask], target[mask], mask, 0.5)
    plain = F.cross_entropy(student.flatten(0, 1) / 0.5, target.flatten(0, 1))
    torch.testing.assert_close(ours, plain)


def test_ibot_gradient_weighs_images_alike_and_spares_visible_patches() -> None:
    student, target, mask = patches()
    student.requires_grad_()
    ibot(student[mask], target[mask], mask, 0.1).backward()
    assert student.grad is not None
    assert student.grad[~mask].abs().max() == 0
    p = (student.detach() / 0.1).softmax(-1)
    count = mask.sum(1).clamp_min(1).view(-1, 1, 1)
    expected = (p - target) / (0.1 * count * len(mask)) * mask.unsqueeze(-1)
    torch.testing.assert_close(student.grad, expected)


# --- Sinkhorn-Knopp


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_equals_the_papers_and_lightly(iterations: int) -> None:
    logits = normal(9, 5)
    ours = sinkhorn(logits, 0.3, iterations)
    want = torch.from_numpy(reference.sinkhorn(logits.numpy(), 0.3, iterations))
    torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(balance((logits / 0.3).exp(), iterations), want)
    theirs = lightly("sinkhorn")(torch.exp(logits.float() / 0.3), iterations=iterations)
    torch.testing.assert_close(sinkhorn(logits.float(), 0.3, iterations), theirs)


def test_sinkhorn_rows_sum_to_one_and_prototypes_may_shift() -> None:
    logits = normal(9, 5)
    q = sinkhorn(logits, 0.1)
    torch.testing.assert_close(q.sum(1), torch.ones(9, dtype=T64))
    torch.testing.assert_close(sinkhorn(logits + 5 * normal(1, 5, seed=1), 0.1), q)
    # A shift per sample is another matter: it only vanishes with many iterations.
    shift = 0.5 * normal(9, 1, seed=2)
    assert (sinkhorn(logits + shift, 0.1, 1) - sinkhorn(logits, 0.1, 1)).abs().max() > 1e-3
    many = [sinkhorn(logits + s, 1.0, 500) for s in (0, shift)]
    torch.testing.assert_close(*many)
    torch.testing.assert_close(many[0].sum(0), torch.full((5,), 9 / 5, dtype=T64))


def test_sinkhorn_balances_to_a_prior() -> None:
    q, prior = (normal(60, 4) / 0.5).exp(), torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    used = balance(q, 500, prior).mean(0)
    torch.testing.assert_close(used, prior / 10, atol=1e-6, rtol=0)
    torch.testing.assert_close(balance(q, 3, torch.full((4,), 0.7)), balance(q, 3))
    with pytest.raises(ValueError, match="prior"):
        balance(q, 3, prior[:3])


def test_sinkhorn_survives_large_logits_and_no_samples() -> None:
    far = torch.tensor([[1000.0, 999.0], [-1000.0, -1001.0]])  # exp of neither is finite
    q = sinkhorn(far[:1].repeat(3, 1), 0.04)
    torch.testing.assert_close(q, torch.full((3, 2), 0.5))
    assert sinkhorn(far, 0.04).isfinite().all()
    assert sinkhorn(torch.zeros(0, 4), 0.04).shape == (0, 4)
    x = normal(4, 3).requires_grad_()
    assert not sinkhorn(x, 0.1).requires_grad


# --- KoLeo


def test_koleo_equals_the_paper_and_lightly() -> None:
    x = normal(8, 5)
    assert koleo(x).item() == pytest.approx(reference.koleo(x.numpy()), abs=1e-6)  # eps
    theirs = lightly("KoLeoLoss")()
    assert koleo(x.float()).item() == pytest.approx(theirs(x.float()).item(), rel=1e-5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    koleo(a).backward()
    theirs(b).backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, b.grad)


def test_koleo_closed_forms() -> None:
    e = normal(5)
    assert koleo(torch.stack([e, -3 * e])).item() == pytest.approx(-math.log(2))
    for n in (3, 7):
        angle = 2 * math.pi * torch.arange(n, dtype=T64) / n
        circle = torch.stack([angle.cos(), angle.sin()], 1)
        assert koleo(circle).item() == pytest.approx(-math.log(2 * math.sin(math.pi / n)))
    twins = normal(1, 9).repeat(2, 1)
    assert koleo(twins).item() == pytest.approx(-math.log((1 + 3) * 1e-8))  # 17.03


def test_koleo_ignores_scale_and_rotation() -> None:
    x = normal(8, 5)
    turn = torch.linalg.qr(normal(5, 5, seed=3)).Q
    size = normal(8, 1, seed=4).abs() + 0.1
    torch.testing.assert_close(koleo(size * x @ turn), koleo(x), rtol=1e-6, atol=0)


def test_koleo_pushes_near_pairs_apart_but_not_without_bound() -> None:
    for gap in (0.1, 1e-6):
        pair = torch.tensor([[1.0, 0.0], [1.0, gap]], dtype=T64, requires_grad=True)
        koleo(pair).backward()
        assert pair.grad is not None
        assert pair.grad[0, 1] > 0 > pair.grad[1, 1]  # downhill is apart
        # Each of two rows sees both terms, each with weight 1/2.
        want = 1 / gap if gap > 1e-3 else 1e3
        assert pair.grad[0, 1].item() == pytest.approx(want, rel=0.02)


# --- SimMIM


def test_simmim_equals_the_paper() -> None:
    images, pred = normal(2, 3, 4, 8), normal(2, 3, 4, 8, seed=1)
    hidden = torch.tensor([[True, False, False, True], [False, True, True, True]])
    hidden = hidden.repeat_interleave(2, 1)  # 8 patches of 2 px
    ours = simmim(mae.patchify(pred, 2), mae.patchify(images, 2), hidden).item()
    want = reference.simmim(pred.numpy(), images.numpy(), hidden.numpy(), 2)
    assert ours == pytest.approx(want, rel=1e-12)


def test_simmim_of_a_shift_is_its_size_and_visible_patches_learn_nothing() -> None:
    target = normal(2, 4, 12)
    hidden = torch.tensor([[True, False, True, False]] * 2)
    pred = (target - 0.37).requires_grad_()
    value = simmim(pred, target, hidden)
    assert value.item() == pytest.approx(0.37)
    value.backward()
    assert pred.grad is not None
    assert pred.grad[:, 1::2].abs().max() == 0
    torch.testing.assert_close(
        pred.grad[:, ::2], torch.full((2, 2, 12), -1 / 48, dtype=T64)
    )  # of |x|, over 4 patches of 12 values


# --- MSN and PMSN


def msn_case() -> tuple[Tensor, Tensor, Tensor]:
    """Anchors (3, 4, 5), the teacher's (4, 5), six prototypes."""
    return normal(3, 4, 5), normal(4, 5, seed=1), normal(6, 5, seed=2)


@pytest.mark.parametrize("direction", ["mean_to_prior", "prior_to_mean"])
@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_msn_equals_the_papers(direction: Any, exponent: float) -> None:
    anchors, z, prototypes = msn_case()
    target = msn.targets(z, prototypes, 0.1, 0.25, 0)
    loops = reference.msn_target(z.numpy(), prototypes.numpy(), 0.1, 0.25)
    torch.testing.assert_close(target, torch.from_numpy(loops), rtol=1e-12, atol=1e-15)
    prior = msn.power_law(6, exponent)
    ours = msn.msn(anchors, target, prototypes, 0.1, 0.8, prior, direction).item()
    first = direction == "mean_to_prior"
    case = (anchors.numpy(), loops, prototypes.numpy(), 0.1, 0.8, prior.numpy(), first)
    assert ours == pytest.approx(reference.msn(*case), rel=1e-12)


@pytest.mark.parametrize("iterations", [0, 3])
def test_msn_and_pmsn_equal_lightly(iterations: int) -> None:
    anchors, z, prototypes = (x.float() for x in msn_case())
    target = msn.targets(z, prototypes, 0.1, 0.25, iterations)
    theirs = lightly("MSNLoss")(temperature=0.1, sinkhorn_iterations=iterations)
    want = theirs(anchors.flatten(0, 1), z, prototypes, 0.25).item()
    assert msn.msn(anchors, target, prototypes, 0.1).item() == pytest.approx(want, rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly copies a tensor by torch.tensor
        theirs = lightly("PMSNLoss")(
            temperature=0.1, sinkhorn_iterations=iterations, power_law_exponent=0.25
        )
        want = theirs(anchors.flatten(0, 1), z, prototypes, 0.25).item()
    prior = msn.power_law(6, 0.25)
    ours = msn.msn(anchors, target, prototypes, 0.1, 1.0, prior, "prior_to_mean").item()
    assert ours == pytest.approx(want, rel=1e-5)
    other = msn.msn(anchors, target, prototypes, 0.1, 1.0, prior, "mean_to_prior").item()
    assert abs(other - want) > 1e-3  # the direction matters


def test_msn_with_a_flat_power_law_is_msn() -> None:
    anchors, z, prototypes = msn_case()
    target = msn.targets(z, prototypes, 0.1, 0.25, 3)
    flat = msn.msn(anchors, target, prototypes, 0.1, 1.0, msn.power_law(6, 0.0))
    torch.testing.assert_close(flat, msn.msn(anchors, target, prototypes, 0.1))


def test_msn_regulariser_is_the_missing_entropy() -> None:
    mean = normal(7).softmax(0)
    entropy = -(mean * mean.log()).sum()
    torch.testing.assert_close(msn.divergence(mean), math.log(7) - entropy)
    one_hot = torch.eye(7, dtype=T64)[2]
    assert msn.divergence(one_hot).item() == pytest.approx(math.log(7))
    assert msn.divergence(torch.full((7,), 1 / 7, dtype=T64)).item() == pytest.approx(0, abs=1e-12)


def test_pmsn_prior_is_met_without_loss_or_gradient() -> None:
    prior = msn.power_law(6, 0.25)
    assert prior.sum().item() == pytest.approx(1)
    assert (prior.diff() < 0).all()
    assert (prior[3] / prior[0]).item() == pytest.approx(4**-0.25)
    histogram = torch.tensor([50.0, 20, 20, 5, 4, 1], dtype=T64)  # any scale
    for pi in (prior, histogram):
        for direction in ("mean_to_prior", "prior_to_mean"):
            logits = pi.log().requires_grad_()
            value = msn.divergence(logits.softmax(0), pi, direction)
            value.backward()
            assert value.item() == pytest.approx(0, abs=1e-12)
            assert logits.grad is not None
            assert logits.grad.abs().max() < 1e-12  # on the simplex
            assert msn.divergence(normal(6, seed=1).softmax(0), pi, direction) > 0.01


def test_msn_falls_to_zero_for_sure_and_balanced_assignments() -> None:
    prototypes = torch.eye(4, dtype=T64)
    z = torch.eye(4, dtype=T64)
    target = msn.targets(z, prototypes, 0.02, 0.25, 3)
    assert msn.msn(z.unsqueeze(0), target, prototypes, 0.02).item() < 1e-9
    # Collapse of all on one prototype is as cheap for the cross-entropy, not for the regulariser.
    lump = z[:1].repeat(4, 1)
    sure = msn.targets(lump, prototypes, 0.02, 0.25, 0)
    collapsed = msn.msn(lump.unsqueeze(0), sure, prototypes, 0.02).item()
    assert collapsed == pytest.approx(math.log(4), abs=1e-6)


def test_msn_gradient_reaches_anchors_and_prototypes_not_the_target() -> None:
    anchors, z, prototypes = (x.requires_grad_() for x in msn_case())
    target = msn.targets(z, prototypes, 0.1, 0.25, 3)
    assert not target.requires_grad
    assert torch.autograd.gradcheck(
        lambda a, q: msn.msn(a, target, q, 0.1, 1.0, msn.power_law(6, 0.5)), (anchors, prototypes)
    )


def test_bad_arguments_are_named() -> None:
    x, q = torch.randn(4, 5), torch.randn(6, 5)
    p = torch.randn(4, 6).softmax(-1)
    mask = torch.ones(2, 2, dtype=torch.bool)
    bad = [
        (lambda: ibot(x, x, mask, 0.0), "temperature"),
        (lambda: ibot(x, x[:3], mask, 0.1), "shapes"),
        (lambda: ibot(x.unsqueeze(0), x.unsqueeze(0), mask, 0.1), "M, K"),
        (lambda: ibot(x, x, torch.ones(2, 3) > 0, 0.1), "hides 6 patches, but 4"),
        (lambda: ibot(x[:1], x[:1], mask, 0.1), "hides 4 patches, but 1"),
        (lambda: sinkhorn(x, -1.0), "temperature"),
        (lambda: sinkhorn(x, 0.1, 0), "iterations"),
        (lambda: sinkhorn(x[0], 0.1), "samples, prototypes"),
        (lambda: koleo(x[:1]), "at least 2"),
        (lambda: koleo(x[0]), "batch, dimension"),
        (lambda: simmim(x, x[:2], mask), "shapes"),
        (lambda: simmim(x.view(2, 2, 5), x.view(2, 2, 5), mask[:1]), "mask"),
        (lambda: simmim(x.view(2, 2, 5), x.view(2, 2, 5), ~mask), "at least one"),
        (lambda: msn.assignments(x, q[:, :4], 0.1), "end alike"),
        (lambda: msn.targets(x, q, 0.1, 0.0, 3), "temperature"),
        (lambda: msn.targets(x, q, 0.0, 0.25, 3), "temperature"),
        (lambda: msn.msn(x, p, q, 0.1), "A, B, d"),
        (lambda: msn.msn(x.unsqueeze(0), p[:3], q, 0.1), "A, B, d"),
        (lambda: msn.divergence(p[0], p[0, :3]), "positive"),
        (lambda: msn.divergence(p[0], p[0] - 1), "positive"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()
