"""Joint-embedding losses against loops (reference_contrastive.py), lightly, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import reference
import reference_contrastive as plain
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import kstest
from test_losses import lightly_loss, normal, pairs
from torch import Tensor
from torch.nn import functional as F

from ssl_core.losses import generalised, info_nce, vicreg
from ssl_core.losses import negative_cosine as cosine
from ssl_core.losses.nt_xent import nt_xent
from ssl_core.losses.rince import rince

T64 = torch.float64


def scale(value: float) -> Tensor:
    return torch.tensor(value, dtype=T64)


# --- MoCo v3 and CLIP


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_info_nce_equals_the_papers(temperature: float) -> None:
    a, b = pairs()
    ours = info_nce.moco(a, b, temperature).item()
    assert ours == pytest.approx(plain.moco(a.numpy(), b.numpy(), temperature), abs=1e-12)
    ours = info_nce.clip(a, b, scale(1 / temperature)).item()
    assert ours == pytest.approx(plain.clip(a.numpy(), b.numpy(), 1 / temperature), abs=1e-12)


def test_moco_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    """Of the cosines it is 2(P - I)/N: the gradient of q follows by the chain rule."""
    n, t = 6, 0.3
    a, b = (F.normalize(x, dim=1) for x in pairs(n))
    q, k = a.clone().requires_grad_(), b.clone().requires_grad_()
    info_nce.moco(q, k, t).backward()
    p = (a @ b.T / t).softmax(1)
    by_hand = 2 * (p - torch.eye(n, dtype=T64)) @ b / n
    by_hand -= (by_hand * a).sum(1, keepdim=True) * a  # normalisation: orthogonal part only
    torch.testing.assert_close(q.grad, by_hand)
    assert k.grad is None


def test_info_nce_when_nothing_is_told_apart() -> None:
    n, t = 5, 0.2
    same = torch.ones(n, 3, dtype=T64)
    assert info_nce.moco(same, same, t).item() == pytest.approx(2 * t * math.log(n))
    assert info_nce.clip(same, same, scale(7.0)).item() == pytest.approx(math.log(n))


def test_moco_weights_choose_the_anchors() -> None:
    """Weights (N, 0, ...) leave one image's loss; 1 leaves the mean as it is."""
    a, b = pairs(4)
    torch.testing.assert_close(
        info_nce.moco(a, b, 0.2, torch.ones(4)), info_nce.moco(a, b, 0.2), rtol=1e-12, atol=0
    )
    only = torch.tensor([0.0, 0.0, 4.0, 0.0])
    logits = [plain.cosine(a[2].numpy(), k) / 0.2 for k in b.numpy()]
    assert info_nce.moco(a, b, 0.2, only).item() == pytest.approx(-0.4 * plain.log_share(logits, 2))


def test_clip_is_symmetric_and_its_scale_learns() -> None:
    """With u = log scale and t = 1/scale, dL/du = -t dL/dt: here by finite difference in t."""
    a, b = pairs()
    log = scale(math.log(5.0)).requires_grad_()
    torch.testing.assert_close(info_nce.clip(a, b, log.exp()), info_nce.clip(b, a, log.exp()))
    info_nce.clip(a, b, log.exp()).backward()
    t, h = 0.2, 1e-5
    above, below = (plain.clip(a.numpy(), b.numpy(), 1 / (t + s)) for s in (h, -h))
    assert log.grad.item() == pytest.approx(-t * (above - below) / (2 * h), rel=1e-6)
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    info_nce.clip(x, y, scale(5.0)).backward()
    assert x.grad.abs().min() > 0
    assert y.grad.abs().min() > 0


# --- BYOL and SimSiam


def test_negative_cosine_equals_the_paper_and_lightly() -> None:
    p, z = pairs()
    ours = cosine.byol(p, z).item()
    assert ours == pytest.approx(plain.byol(p.numpy(), z.numpy()), abs=1e-12)
    theirs = lightly_loss("NegativeCosineSimilarity")(p.float(), z.float()).item()
    assert cosine.negative_cosine(p.float(), z.float()).item() == pytest.approx(theirs, abs=1e-6)


def test_negative_cosine_meets_its_ends_and_pulls_sideways() -> None:
    p, z = pairs()
    assert cosine.negative_cosine(p, 3 * p).item() == pytest.approx(-1)
    assert cosine.negative_cosine(p, -p).item() == pytest.approx(1)
    assert cosine.byol(p, 3 * p).item() == pytest.approx(0, abs=1e-12)
    assert cosine.byol(p, -p).item() == pytest.approx(4)
    p, z = p.requires_grad_(), z.requires_grad_()
    cosine.negative_cosine(p, z).backward()
    torch.testing.assert_close((p.grad * p).sum(1), torch.zeros(6, dtype=T64))
    assert p.grad.norm(dim=1).min() > 0
    assert z.grad is None


# --- VICReg


def test_vicreg_equals_the_paper_and_lightly() -> None:
    a, b = pairs()
    a, b = 0.3 * a, 0.7 * b  # some deviations below 1, some above
    weights = (25.0, 25.0, 1.0)
    loss, terms = vicreg.vicreg(a, b, weights)
    assert loss.item() == pytest.approx(plain.vicreg(a.numpy(), b.numpy(), weights), rel=1e-12)
    for i, name in enumerate(("invariance", "variance", "covariance")):
        one = tuple(float(i == j) for j in range(3))
        want = plain.vicreg(a.numpy(), b.numpy(), one)
        assert terms[name].item() == pytest.approx(want, rel=1e-12)
    theirs = lightly_loss("VICRegLoss")(a.float(), b.float()).item()
    assert vicreg.vicreg(a.float(), b.float())[0].item() == pytest.approx(theirs, rel=1e-6)


def test_vicreg_collapse_is_stationary() -> None:
    a = torch.full((6, 4), 0.3, dtype=T64, requires_grad=True)
    loss, _ = vicreg.vicreg(a, a.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(24.75, abs=1e-12)  # 25 (1 - sqrt(1e-4))
    assert a.grad.abs().max() < 1e-12


def test_vicreg_ignores_a_shift_and_spread_uncorrelated_features() -> None:
    a, b = pairs()
    shift = normal(1, 5, seed=3)
    torch.testing.assert_close(vicreg.vicreg(a + shift, b + shift)[0], vicreg.vicreg(a, b)[0])
    centred = normal(6, 3) - normal(6, 3).mean(0)
    wide = 10 * torch.linalg.qr(centred).Q  # centred still, orthogonal, deviations above 1
    loss, terms = vicreg.vicreg(wide, wide + 0.1)
    assert terms["variance"].item() == 0
    assert terms["covariance"].item() == pytest.approx(0, abs=1e-20)
    assert loss.item() == pytest.approx(25 * 0.01)


@pytest.mark.parametrize("k", [2, 3])
def test_covariance_of_a_repeated_feature(k: int) -> None:
    """k copies of a feature of variance v: k(k - 1) entries v, over d = k."""
    x = normal(7, 1)
    v = x.var().item()
    want = (k - 1) * v**2
    assert vicreg.covariance(x.expand(-1, k)).item() == pytest.approx(want, rel=1e-12)


def test_vicreg_terms_take_dimensions_between_one_by_one() -> None:
    z = 0.5 * normal(6, 3, 4)
    for term in (vicreg.variance, vicreg.covariance):
        one_by_one = torch.stack([term(z[:, i]) for i in range(3)]).mean()
        torch.testing.assert_close(term(z), one_by_one)


# --- RINCE


@pytest.mark.parametrize(("q", "lam"), [(0.1, 0.01), (0.5, 0.025), (1.0, 0.3)])
def test_rince_equals_the_paper(q: float, lam: float) -> None:
    a, b = pairs()
    for t in (0.1, 0.5):
        want = plain.rince(a.numpy(), b.numpy(), t, q, lam)
        assert rince(a, b, t, q, lam).item() == pytest.approx(want, rel=1e-12)


def test_rince_tends_to_nt_xent_for_small_q() -> None:
    """Value: NT-Xent + log lam with an error of order q. Gradient: lam drops out."""
    a, b = pairs()
    want = reference.nt_xent(a.numpy(), b.numpy(), 0.2)
    errors = [abs(rince(a, b, 0.2, q, 0.05).item() - want - math.log(0.05)) for q in (1e-2, 1e-4)]
    assert errors[0] < 0.3
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.1)
    single = rince(a.float(), b.float(), 0.2, 1e-6, 0.05).item()  # 1/q would amplify rounding
    assert single == pytest.approx(want + math.log(0.05), abs=1e-4)
    grads = []
    for lam in (0.01, 1.0):
        x = a.clone().requires_grad_()
        rince(x, b, 0.2, 1e-9, lam).backward()
        grads.append(x.grad)
    x = a.clone().requires_grad_()
    nt_xent(x, b, 0.2).backward()
    for grad in grads:
        torch.testing.assert_close(grad, x.grad, rtol=1e-5, atol=1e-8)


def test_rince_with_q_one_weighs_easy_positives_and_is_linear() -> None:
    """dL/du+ = -(1 - lam) P, dL/du- = lam e^u: chain rule by hand on unit rows."""
    n, t, lam = 4, 0.5, 0.2
    z = F.normalize(torch.cat(pairs(n)), dim=1)
    partner = torch.arange(2 * n).roll(n)
    by_logit = lam * (z @ z.T / t).exp().fill_diagonal_(0)
    own = torch.arange(2 * n)
    by_logit[own, partner] *= -(1 - lam) / lam
    by_hand = (by_logit + by_logit.T) @ z / t / (2 * n)
    by_hand -= (by_hand * z).sum(1, keepdim=True) * z
    free = z.clone().requires_grad_()
    rince(free[:n], free[n:], t, 1.0, lam).backward()
    torch.testing.assert_close(free.grad, by_hand)


def test_rince_weights_choose_the_anchors() -> None:
    a, b = pairs(4)
    logits = plain.anchors(a.numpy(), b.numpy(), 0.2)
    q, lam, losses = 0.3, 0.1, []
    for own, others in (logits[1], logits[5]):  # both views of image 1
        total = math.exp(own) + sum(map(math.exp, others))
        losses.append((-math.exp(q * own) + (lam * total) ** q) / q)
    only = torch.tensor([0.0, 4.0, 0.0, 0.0])
    assert rince(a, b, 0.2, q, lam, only).item() == pytest.approx(sum(losses) / 2)


# --- generalised contrastive losses


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_generalised_losses_equal_the_papers(weight: float) -> None:
    a, b = pairs()
    for t in (0.1, 0.5):
        want = plain.generalised(a.numpy(), b.numpy(), t, weight)
        assert generalised.nt_xent(a, b, t, weight).item() == pytest.approx(want, abs=1e-12)
        want = plain.decoupled(a.numpy(), b.numpy(), t, weight)
        assert generalised.decoupled(a, b, t, weight).item() == pytest.approx(want, abs=1e-12)


def test_weight_one_recovers_nt_xent_and_decoupled_equals_lightly() -> None:
    a, b = pairs()
    want = reference.nt_xent(a.numpy(), b.numpy(), 0.2)
    assert generalised.nt_xent(a, b, 0.2).item() == pytest.approx(want, abs=1e-12)
    theirs = lightly_loss("DCLLoss", temperature=0.2)(a.float(), b.float()).item()
    ours = generalised.decoupled(a.float(), b.float(), 0.2).item()
    assert ours == pytest.approx(theirs, abs=1e-5)
    same = torch.ones(4, 3, dtype=T64)
    assert generalised.decoupled(same, same, 0.2).item() == pytest.approx(math.log(6))


def test_decoupled_pull_does_not_fade() -> None:
    """NT-Xent's pull on partners is 1 - P; decoupled it is 1 however easy the positive is."""
    n, t = 3, 0.2
    z = F.normalize(torch.cat(pairs(n)), dim=1)
    partner = torch.arange(2 * n).roll(n)
    own = torch.arange(2 * n)
    s = (z @ z.T / t).fill_diagonal_(-math.inf)
    s[own, partner] = -math.inf
    by_cosine = s.softmax(1) / t
    by_cosine[own, partner] = -1 / t
    by_hand = (by_cosine + by_cosine.T) @ z / (2 * n)
    by_hand -= (by_hand * z).sum(1, keepdim=True) * z
    free = z.clone().requires_grad_()
    generalised.decoupled(free[:n], free[n:], t).backward()
    torch.testing.assert_close(free.grad, by_hand)


def test_sliced_wasserstein_is_the_best_matching_in_each_direction() -> None:
    z, sample = normal(6, 3), normal(6, 3, seed=1)
    directions = torch.linalg.qr(normal(3, 3, seed=2)).Q
    ours = generalised.sliced_wasserstein(z, sample, directions).item()
    columns = [((z @ w).numpy(), (sample @ w).numpy()) for w in directions.T]
    want = np.mean([plain.least_transport(x, y) for x, y in columns])
    assert ours == pytest.approx(want, rel=1e-12)
    costs = [(x[:, None] - y) ** 2 for x, y in columns]
    solved = np.mean([c[linear_sum_assignment(c)].mean() for c in costs])
    assert ours == pytest.approx(solved, rel=1e-12)


def test_sliced_wasserstein_is_zero_for_a_permutation_and_ignores_order() -> None:
    z, sample = normal(8, 3), normal(8, 3, seed=1)
    directions = torch.linalg.qr(normal(3, 3, seed=2)).Q
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert generalised.sliced_wasserstein(z, z[order], directions).item() == pytest.approx(0)
    base = generalised.sliced_wasserstein(z, sample, directions)
    assert base > 0
    torch.testing.assert_close(generalised.sliced_wasserstein(z[order], sample, directions), base)
    # A shift by c adds |c|^2 / d to the distance of equal samples, in any orthogonal basis.
    moved = generalised.sliced_wasserstein(z + torch.tensor([3.0, 0, 4.0]), z, directions)
    assert moved.item() == pytest.approx(25 / 3)


def test_priors_have_their_laws() -> None:
    torch.manual_seed(0)
    like = torch.empty(4000, 3, dtype=T64)
    cube = generalised.draw("uniform-cube", like)
    gauss = generalised.draw("normal", like)
    ball = generalised.draw("uniform-sphere", like)
    torch.testing.assert_close(ball.norm(dim=1), torch.ones(4000, dtype=T64))
    for column in range(3):
        assert kstest(cube[:, column].numpy(), "uniform", (-1, 2)).pvalue > 1e-3
        assert kstest(gauss[:, column].numpy(), "norm").pvalue > 1e-3
        # Archimedes: a coordinate of the 2-sphere is uniform.
        assert kstest(ball[:, column].numpy(), "uniform", (-1, 2)).pvalue > 1e-3
    q = generalised.orthogonal(like)
    torch.testing.assert_close(q.T @ q, torch.eye(3, dtype=T64))


@pytest.mark.parametrize("prior", ["uniform-sphere", "uniform-cube", "normal"])
def test_swd_prefers_its_prior(prior: generalised.Prior) -> None:
    """Both terms: no distance for partners that are equal, little for rows of the prior's law."""
    torch.manual_seed(0)
    z = generalised.draw(prior, torch.empty(400, 4, dtype=T64))
    near = generalised.swd(z, z, prior).item()
    far = generalised.swd(z.abs(), z.abs(), prior).item()
    assert 0 < near < 0.02
    assert far > 5 * near
    apart = generalised.swd(z, z.flip(0), prior, weight=0.0).item()
    assert apart == pytest.approx(np.mean((z - z.flip(0)).numpy() ** 2))


def test_bad_arguments_are_named() -> None:
    a = torch.randn(4, 5)
    views = torch.randn(2, 4, 5)
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: info_nce.moco(a, a, 0.0), "temperature"),
        (lambda: info_nce.moco(a[:1], a[:1], 0.2), "at least 2"),
        (lambda: info_nce.moco(a, a[:3], 0.2), "shapes"),
        (lambda: info_nce.clip(a, a, torch.tensor(math.nan)), "scale"),
        (lambda: info_nce.clip(a[:1], a[:1], torch.tensor(1.0)), "at least 2"),
        (lambda: info_nce.clip(views, views, torch.tensor(1.0)), "batch, dimension"),
        (lambda: cosine.negative_cosine(a, a[:3]), "shapes"),
        (lambda: cosine.byol(views, views), "batch, dimension"),
        (lambda: vicreg.vicreg(a[:1], a[:1]), "at least 2"),
        (lambda: vicreg.vicreg(a, a[:3]), "shapes"),
        (lambda: vicreg.vicreg(views, views), "batch, dimension"),
        (lambda: vicreg.variance(a[:1]), "at least 2"),
        (lambda: vicreg.covariance(a[0]), "at least 2"),
        (lambda: rince(a, a, -1.0, 0.5, 0.1), "temperature"),
        (lambda: rince(a, a, 0.2, 0.0, 0.1), "q 0"),
        (lambda: rince(a, a, 0.2, 0.5, 1.1), "lam 1.1"),
        (lambda: rince(a, a, 0.01, 1.0, 0.1), "at most 80"),
        (lambda: rince(a[:1], a[:1], 0.2, 0.5, 0.1), "at least 2"),
        (lambda: rince(a, a[:3], 0.2, 0.5, 0.1), "shapes"),
        (lambda: generalised.nt_xent(a, a, 0.0), "temperature"),
        (lambda: generalised.nt_xent(a, a, 0.2, -1.0), "weight"),
        (lambda: generalised.decoupled(a, a, 0.2, math.nan), "weight"),
        (lambda: generalised.decoupled(a[:1], a[:1], 0.2), "at least 2"),
        (lambda: generalised.swd(a[:1], a[:1], "normal"), "at least 2"),
        (lambda: generalised.swd(a, a, "cauchy"), "prior 'cauchy'"),  # type: ignore[arg-type]
        (lambda: generalised.swd(views, views, "normal"), "batch, dimension"),
        (lambda: generalised.sliced_wasserstein(a, a, torch.eye(4)), "directions"),
        (lambda: generalised.sliced_wasserstein(a, a[:3], torch.eye(5)), "shapes"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()
