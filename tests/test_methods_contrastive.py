"""What is special to each joint-embedding method; what all share is in test_methods.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import reference_contrastive as plain
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from test_methods import BATCH, build, crops, one_loss, train
from torch import Tensor, nn

from ssl_core import plugins
from ssl_core.errors import HeadwaterError
from ssl_core.losses import generalised

NAMES = ["moco_v3", "byol", "simsiam", "vicreg", "rince", "contrastive", "clip_min"]


def doubles(*tensors: Tensor) -> list[NDArray[Any]]:
    return [t.detach().double().numpy() for t in tensors]


def projections(method: Any) -> list[Tensor]:
    with torch.no_grad():
        return [method.projector(method.encoder(v).pooled) for v in crops(method)]


def moved_apart(method: Any) -> Any:
    """Train a little, so that teacher and student differ; then stand still."""
    train(method, 3)
    return method.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_cnn_trains(name: str) -> None:
    method = build(name, backbone="test_efficientnet")
    assert all(map(math.isfinite, train(method, 2)))


# --- whole methods against the papers' losses on their own projections


def test_moco_v3_equals_the_paper_on_its_own_projections() -> None:
    method = moved_apart(build("moco_v3", temperature=0.3))
    views = crops(method)
    loss, metrics = method(views, 10)
    with torch.no_grad():
        q = [method.predictor(z) for z in projections(method)]
        k = [method.teacher_projector(method.teacher(v).pooled) for v in views]
    (q1, q2), (k1, k2) = doubles(*q), doubles(*k)
    assert loss.item() == pytest.approx(plain.moco(q1, k2, 0.3) + plain.moco(q2, k1, 0.3), rel=1e-4)
    assert metrics["chance"] == pytest.approx(4 * 0.3 * math.log(BATCH))


def test_byol_equals_the_paper_on_its_own_projections() -> None:
    method = moved_apart(build("byol"))
    views = crops(method)
    with torch.no_grad():
        p = [method.predictor(z) for z in projections(method)]
        t = [method.teacher_projector(method.teacher(v).pooled) for v in views]
    (p1, p2), (t1, t2) = doubles(*p), doubles(*t)
    want = plain.byol(p1, t2) + plain.byol(p2, t1)
    assert method(views, 10)[0].item() == pytest.approx(want, rel=1e-4)


def test_simsiam_equals_the_paper_and_the_target_is_cut_off() -> None:
    method = moved_apart(build("simsiam"))
    z = projections(method)
    with torch.no_grad():
        (p1, p2), (z1, z2) = doubles(*map(method.predictor, z)), doubles(*z)
    want = (plain.byol(p1, z2) + plain.byol(p2, z1)) / 4 - 1
    assert method(crops(method), 10)[0].item() == pytest.approx(want, abs=1e-5)
    # With a predictor that is deaf, a gradient could reach the encoder through targets only.
    nn.init.zeros_(method.predictor[0].weight)
    method.zero_grad()
    one_loss(method).backward()
    assert all(p.grad.abs().max() == 0 for p in method.encoder.parameters())


def test_vicreg_and_rince_equal_the_papers() -> None:
    method = build("vicreg", invariance=7.0, variance=3.0, covariance=2.0).eval()
    want = plain.vicreg(*doubles(*projections(method)), (7.0, 3.0, 2.0))
    loss, metrics = method(crops(method), 10)
    assert loss.item() == pytest.approx(want, rel=1e-4)
    terms = 7 * metrics["invariance"] + 3 * metrics["variance"] + 2 * metrics["covariance"]
    assert terms.item() == pytest.approx(want, rel=1e-4)
    method = build("rince", q=0.4, lam=0.05).eval()
    want = plain.rince(*doubles(*projections(method)), 0.2, 0.4, 0.05)
    assert one_loss(method).item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_contrastive_options_choose_the_loss(weight: float) -> None:
    losses = {"nt_xent": plain.generalised, "decoupled": plain.decoupled}
    for name, loss in losses.items():
        method = build("contrastive", loss=name, weight=weight).eval()
        want = loss(*doubles(*projections(method)), 0.2, weight)
        value, metrics = method(crops(method), 10)
        assert value.item() == pytest.approx(want, rel=1e-4)
        rivals = 2 * BATCH - (1 if name == "nt_xent" else 2)
        chance = math.log(rivals) if weight == 1 else None
        assert metrics.get("chance") == pytest.approx(chance)


def test_contrastive_at_weight_one_is_simclr() -> None:
    losses = {}
    for name in ("simclr", "contrastive"):
        method = build(name, **({"loss": "nt_xent"} if name == "contrastive" else {}))
        losses[name] = train(method, 3)
    assert losses["contrastive"] == pytest.approx(losses["simclr"], rel=1e-4)


@pytest.mark.parametrize("prior", ["uniform-sphere", "uniform-cube", "normal"])
def test_swd_brings_projections_to_the_prior(prior: generalised.Prior) -> None:
    """The distribution term alone, from an untrained encoder."""
    method = build("contrastive", loss="swd", prior=prior, weight=20.0)
    found = []
    for steps in (0, 12):
        train(method, steps)
        z = torch.cat(projections(method))
        z = nn.functional.normalize(z, dim=1) if prior == "uniform-sphere" else z
        torch.manual_seed(0)
        found.append(apart(z, generalised.draw(prior, z), generalised.orthogonal(z)))
    assert found[1] < 0.8 * found[0]


def apart(z: Tensor, sample: Tensor, turn: Tensor) -> float:
    mine, other = doubles((z @ turn).sort(0).values, (sample @ turn).sort(0).values)
    return float(((mine - other) ** 2).mean())


# --- teachers


@pytest.mark.parametrize("name", ["moco_v3", "byol"])
def test_a_new_teacher_equals_the_student_and_sees_both_views(name: str) -> None:
    method = build(name)
    seen = []
    method.teacher.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    views = crops(method)
    method(views, 0)
    assert all(torch.equal(a, b) for a, b in zip(seen, views, strict=True))
    method.eval()
    with torch.no_grad():
        mine, other = (
            method.teacher_projector(method.teacher(views[0]).pooled),
            method.projector(method.encoder(views[0]).pooled),
        )
    assert torch.equal(mine, other)
    method.after_step(0)  # the student did not move: nor may the teacher
    with torch.no_grad():
        torch.testing.assert_close(method.teacher_projector(method.teacher(views[0]).pooled), other)


# --- MoCo v3


def test_moco_v3_frozen_patch_projection_stays_and_the_rest_learns() -> None:
    method = build("moco_v3", freeze_patch=True)
    projection = method.encoder.model.patch_embed.proj
    first = projection.weight.detach().clone()
    block = method.encoder.model.blocks[0].attn.qkv.weight
    other = block.detach().clone()
    one_loss(method).backward()
    assert projection.weight.grad is None
    assert projection.bias.grad is None
    train(method, 2)
    assert torch.equal(projection.weight, first)
    assert torch.equal(method.teacher.model.patch_embed.proj.weight, first)
    assert not torch.equal(block, other)
    assert plugins.load("methods", "moco_v3").PAPER["freeze_patch"]
    with pytest.raises(HeadwaterError, match="no patch projection"):
        build("moco_v3", backbone="test_efficientnet", freeze_patch=True)


def shapes(module: nn.Module) -> list[tuple[Any, ...]]:
    linear = [m for m in module if isinstance(m, nn.Linear)]
    norms = [m.affine for m in module if isinstance(m, nn.BatchNorm1d)]
    sizes = [(m.in_features, m.out_features, m.bias is not None) for m in linear]
    return [*sizes, tuple(norms)]


def test_heads_are_those_of_the_papers() -> None:
    vit = build("moco_v3", hidden=20, out=8)
    assert shapes(vit.projector) == [
        (48, 20, False),
        (20, 20, False),
        (20, 8, False),
        (True, True, False),
    ]
    assert shapes(vit.predictor) == [(8, 20, False), (20, 8, False), (True, False)]
    cnn = build("moco_v3", backbone="test_efficientnet", hidden=20, out=8)
    width = cnn.encoder.embed_dim
    assert shapes(cnn.projector) == [(width, 20, False), (20, 8, False), (True, False)]
    assert shapes(cnn.predictor) == [(8, 20, False), (20, 8, False), (True,)]
    byol = build("byol", hidden=20, out=8)
    assert shapes(byol.projector) == [(48, 20, False), (20, 8, True), (True,)]
    assert shapes(byol.predictor) == [(8, 20, False), (20, 8, True), (True,)]
    simsiam = build("simsiam", hidden=20, out=8, bottleneck=4)
    assert shapes(simsiam.projector)[-1] == (True, True, False)
    assert shapes(simsiam.predictor) == [(8, 4, False), (4, 8, True), (True,)]
    vicreg = build("vicreg", hidden=20, out=8)
    assert shapes(vicreg.projector) == [
        (48, 20, False),
        (20, 20, False),
        (20, 8, False),
        (True, True),
    ]


# --- collapse


def test_monitors_tell_of_collapse_where_the_loss_cannot() -> None:
    method = build("byol").eval()
    nn.init.zeros_(method.projector[-1].weight)
    nn.init.zeros_(method.teacher_projector[-1].weight)
    nn.init.zeros_(method.predictor[-1].weight)
    same = torch.linspace(1, 2, 32)
    for part in (method.projector, method.teacher_projector, method.predictor):
        part[-1].bias.data.copy_(same)
    loss, metrics = method(crops(method), 10)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert float(metrics["std"]) == pytest.approx(0, abs=1e-3)
    assert float(metrics["positive"]) == pytest.approx(1)
    fresh = build("byol")
    assert float(fresh(crops(fresh), 10)[1]["std"]) > 0.1


# --- RINCE


def test_rince_with_small_q_trains_as_simclr() -> None:
    method, simclr = build("rince", q=1e-5, lam=0.2), build("simclr")
    one_loss(method).backward()
    one_loss(simclr).backward()
    own = dict(method.named_parameters())
    for name, p in simclr.named_parameters():
        torch.testing.assert_close(own[name].grad, p.grad, rtol=1e-2, atol=1e-4)
    a, b = doubles(*torch.randn(2, BATCH, 8, generator=torch.Generator().manual_seed(0)))
    gap = plain.rince(a, b, 0.2, 1e-5, 0.2) - reference.nt_xent(a, b, 0.2)
    assert gap == pytest.approx(math.log(0.2), abs=1e-3)


# --- CLIP


def test_clip_min_has_a_linear_projector_and_square_crops_only() -> None:
    method = build("clip_min", out=48).eval()
    assert sum(p.numel() for p in method.projector.parameters()) == 48 * 48
    nn.init.eye_(method.projector.weight)
    views = crops(method)
    with torch.no_grad():
        features = [method.encoder(v).pooled for v in views]
    want = plain.clip(*doubles(*features), 1 / 0.07)
    loss, metrics = method(views, 0)
    assert loss.item() == pytest.approx(want, rel=1e-4)
    assert float(metrics["temperature"]) == pytest.approx(0.07)
    assert metrics["chance"] == pytest.approx(math.log(BATCH))
    (view,) = method.views
    assert (view.count, view.ratio, view.flip) == (2, (1.0, 1.0), 0.0)
    assert not any(view.jitter)
    assert view.grey == view.blur == view.solarise == 0


def test_clip_min_clips_the_scale_and_lets_it_return() -> None:
    method = build("clip_min")
    nn.init.constant_(method.log_scale, 9.0)
    method.after_step(0)
    assert method.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    one_loss(method).backward()
    assert method.log_scale.grad.abs() > 0
    nn.init.constant_(method.log_scale, 2.0)
    method.after_step(1)
    assert method.log_scale.item() == 2.0
    with pytest.raises(ValidationError, match="temperature"):
        build("clip_min", temperature=0.001)
