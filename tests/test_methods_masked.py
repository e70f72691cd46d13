"""What is special to iBOT, DINOv2, SimMIM, CL+MIM, MSN and PMSN, and their masks."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest
import torch
from test_methods import BATCH, SIZE, STEPS, TABLE, TASK, VIT, build, crops, one_loss
from torch import Tensor, nn

from ssl_core import models, plugins
from ssl_core.errors import HeadwaterError
from ssl_core.losses import dino as dino_loss
from ssl_core.losses import msn as msn_loss
from ssl_core.losses.koleo import koleo
from ssl_core.methods import _masks
from ssl_core.methods import mae as mae_method
from ssl_core.types import Task

CPU = torch.device("cpu")
FAMILY = {"prototypes": 32, "hidden": 64, "bottleneck": 16, "locals_": 2, "warm": 0}


def gradients(method: Any, loss: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: int) -> Tensor:
    """The same patches in all crops; returns the mask (2B, L)."""
    mask = torch.zeros(2 * BATCH, 16, dtype=torch.bool)
    mask[:, list(hidden)] = True
    monkeypatch.setattr(_masks, "block_masks", lambda *_: mask)
    return mask


# --- Masks


@pytest.mark.parametrize("side", [2, 4, 8, 14])
@pytest.mark.parametrize("smallest", [0, 4, 16])
def test_blocks_never_exceed_their_count(side: int, smallest: int) -> None:
    torch.manual_seed(0)
    counts = torch.randint(0, side * side // 2 + 1, (200,))
    mask = _masks.block_masks(counts, side, smallest)
    assert mask.shape == (200, side * side)
    assert (mask.sum(1) <= counts).all()
    assert mask[counts == 0].sum() == 0
    if side > 2:
        assert mask.sum() > 0.7 * counts.sum()


def runs(row: Tensor) -> int:
    """Separate stretches of true entries in a vector."""
    padded = torch.cat([torch.zeros(1, dtype=torch.bool), row])
    return int((padded[1:] & ~padded[:-1]).sum())


def test_blocks_are_rectangles_of_the_asked_shape() -> None:
    torch.manual_seed(0)
    proposals = _masks._blocks(torch.full((100,), 30.0), 14, 9).flatten(0, 1)  # (1000, L)
    grids = proposals[proposals.any(1)].unflatten(1, (14, 14))
    for grid in grids[:200]:
        rows, columns = grid.any(1), grid.any(0)
        assert torch.equal(grid, rows.unsqueeze(1) & columns)
        assert runs(rows) == runs(columns) == 1
    height, width = (grids.any(axis).sum(1).float() for axis in (2, 1))
    area, aspect = height * width, height / width
    assert area.min() >= 6  # 9 but for the rounding of the sides
    assert area.max() <= 36
    assert aspect.min() < 0.5
    assert aspect.max() > 2  # log-uniform: tall and broad alike
    assert abs(aspect.log().mean()) < 0.1
    assert grids.any(0).all()  # every place is reached


def test_blocks_hide_as_much_as_lightlys() -> None:
    """Means of hidden patches over many draws; standard error of each is below 0.2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly's own imports
        from lightly.models.utils import random_block_mask
    torch.manual_seed(0)
    random.seed(0)
    counts = _masks.spread_counts(400, 0.5, (0.1, 0.5), 196)
    ours = _masks.block_masks(counts, 14, 4)
    theirs = random_block_mask((400, 14, 14)).flatten(1)
    masked = [m.any(1) for m in (ours, theirs)]
    assert masked[0].sum() == masked[1].sum() == 200
    means = [m.sum(1)[h].float().mean().item() for m, h in zip((ours, theirs), masked, strict=True)]
    assert means[0] == pytest.approx(means[1], abs=0.8)
    assert means[0] == pytest.approx(0.3 * 196, rel=0.05)
    # As lumpy as theirs: how often the neighbour to the right of a hidden patch is hidden.
    for m, where in zip((ours, theirs), masked, strict=True):
        grid = m[where].unflatten(1, (14, 14))
        both = (grid[..., :-1] & grid[..., 1:]).sum() / grid[..., :-1].sum()
        means.append(both.item())
    assert means[2] == pytest.approx(means[3], abs=0.03)


def test_counts_of_ibot_and_dinov2() -> None:
    torch.manual_seed(0)
    coin = _masks.coin_counts(4000, 0.5, (0.1, 0.5), 100)
    assert (coin > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    drawn = coin[coin > 0].float()
    assert (drawn.min(), drawn.max()) == (10, 49)
    assert drawn.mean().item() == pytest.approx(29.5, abs=1)
    spread = _masks.spread_counts(33, 0.5, (0.1, 0.5), 1000).sort().values
    assert (spread > 0).sum() == 16
    steps = torch.linspace(100, 500, 17)
    assert ((spread[-16:] >= steps[:-1].floor()) & (spread[-16:] <= steps[1:])).all()
    shuffled = _masks.spread_counts(33, 0.5, (0.1, 0.5), 1000)
    assert not torch.equal(shuffled, shuffled.sort().values)


def test_cells_of_simmim_are_whole_and_as_many_as_asked() -> None:
    torch.manual_seed(0)
    mask = _masks.cell_masks(300, 7, 2, 30, CPU).unflatten(1, (14, 14))
    cells = mask.unflatten(2, (7, 2)).unflatten(1, (7, 2))  # (N, 7, 2, 7, 2)
    assert (cells == cells[:, :, :1, :, :1]).all()
    assert (cells[:, :, 0, :, 0].sum((1, 2)) == 30).all()
    chance = mask.float().mean(0)
    assert (chance - 30 / 49).abs().max() < 0.15  # every place alike
    # The paper's setting: 224 px in squares of 32 px, ratio 0.6.
    encoder = models.create("vit_tiny_patch16_224", {**VIT, "img_size": 224, "patch_size": 16})
    plugin = plugins.load("methods", "simmim")
    method = plugin.Method(encoder, plugin.Config(mask_patch=32), Task(224, 4))
    assert (method.pixels.cells, method.pixels.hidden) == (7, 30)


# --- iBOT and DINOv2


@pytest.mark.parametrize("tied", [True, False])
def test_ibot_without_its_patch_loss_is_dino(tied: bool) -> None:
    found = []
    for name, own in (("dino", {}), ("ibot", {"patch_weight": 0.0, "tied": tied})):
        torch.manual_seed(3)
        plugin = plugins.load("methods", name)
        encoder = models.create("vit_tiny_patch16_224", VIT)
        method = plugin.Method(encoder, plugin.Config(**FAMILY, **own), TASK).double()
        values = []
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):
            loss, metrics = method([v.double() for v in crops(method)], step)
            grads = gradients(method, loss)
            optimizer.step()
            method.after_step(step)
            values.append(loss.item())
            assert math.isfinite(float(metrics.get("patch", 0)))
        found.append((values, grads, method.centre))
    dino, ibot = found
    # Not to the last bit: DINO's last block computes no patch (packed.py), other kernels add up.
    assert dino[0] == pytest.approx(ibot[0], rel=1e-12)
    for name, grad in dino[1].items():
        torch.testing.assert_close(ibot[1][name], grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dino[2], ibot[2], rtol=1e-12, atol=1e-14)
    extra = {n for n in ibot[1] if n not in dino[1]}
    assert "mask_token" in extra
    assert all(ibot[1][n].abs().max() == 0 for n in extra)


def test_ibot_equals_its_parts_on_its_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("ibot", tied=False, patch_weight=0.7).eval()
    method.centre.copy_(torch.linspace(-0.2, 0.2, 32))
    method.patch_centre.copy_(torch.linspace(0.1, -0.3, 32))
    mask = hide(monkeypatch, 1, 2, 5, 6, 11)
    views = crops(method)
    both = torch.cat(views[:2])
    with torch.no_grad():
        loss, metrics = method(views, 10)
        whole = method.encoder(both, mask=mask, token=method.mask_token)
        pooled = torch.cat([whole.pooled, *(method.encoder(v).pooled for v in views[2:])])
        student = method.head(pooled).unflatten(0, (4, BATCH))
        seen = method.teacher(both)
        teacher = method.teacher_head(seen.pooled).unflatten(0, (2, BATCH))
        target = dino_loss.targets(teacher, method.centre, 0.04)
        first = dino_loss.dino(student, target, 0.1)
        patches = method.teacher_patch_head(seen.patch.flatten(1, 2))  # (2B, L, K)
        q = ((patches - method.patch_centre) / 0.04).softmax(-1)[:, [1, 2, 5, 6, 11]]
        log_p = (method.patch_head(whole.patch.flatten(1, 2)) / 0.1).log_softmax(-1)
        second = -(q * log_p[:, [1, 2, 5, 6, 11]]).sum(-1).mean()
    assert metrics["patch"].item() == pytest.approx(second.item(), rel=1e-5)
    assert loss.item() == pytest.approx((first + 0.7 * second).item(), rel=1e-5)
    assert float(metrics["chance"]) == pytest.approx(1.7 * math.log(32))
    assert metrics["masked"].item() == pytest.approx(5 / 16)


def test_ibot_centres_wait_for_the_step_and_take_all_patches() -> None:
    method = build("ibot")
    views = crops(method)
    before = method.patch_centre.clone(), method.centre.clone()
    method(views, 0)
    assert torch.equal(method.patch_centre, before[0])  # a rejected step leaves no trace
    with torch.no_grad():
        out = method.teacher(torch.cat(views[:2]))
        want = (
            method.teacher_head(out.patch).mean((0, 1, 2)),
            method.teacher_head(out.pooled).mean(0),
        )
    method.after_step(0)
    torch.testing.assert_close(method.patch_centre, 0.1 * want[0])
    torch.testing.assert_close(method.centre, 0.1 * want[1])


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_patch_heads_act_on_masked_tokens_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(name, tied=False)
    shapes = []
    method.patch_head.register_forward_hook(lambda _m, i, _o: shapes.append(tuple(i[0].shape)))
    hide(monkeypatch, 3, 7)
    one_loss(method)
    assert shapes == [(2 * BATCH * 2, 48)]


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
@pytest.mark.parametrize("tied", [True, False])
def test_no_masked_patch_leaves_a_finite_loss(
    name: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(name, tied=tied)
    hide(monkeypatch)
    loss, metrics = method(crops(method), 10)
    grads = gradients(method, loss)
    assert metrics["patch"] == 0
    assert all(g.isfinite().all() for g in grads.values())
    live = {n for n, p in method.named_parameters() if p.requires_grad}
    assert live == set(grads)  # DDP waits for all


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_student_is_blind_where_masked_and_teacher_is_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(name).eval()
    hide(monkeypatch, 1)
    got: dict[str, list[Tensor]] = {"encoder": [], "teacher": []}
    for part, seen in got.items():
        getattr(method, part).register_forward_hook(
            lambda _m, _i, out, seen=seen: seen.append(out.pooled.detach())
        )
    views = crops(method)
    changed = [v.clone() for v in views]
    for v in changed[:2]:
        v[:, :, :8, 8:16] = 3.0  # patch 1 of the global crops
    for batch in (views, changed):
        method(batch, 10)
    student, teacher = got["encoder"], got["teacher"]
    assert torch.equal(student[0], student[2])  # global crops; the local ones come second
    assert not torch.equal(teacher[0], teacher[1])


def test_dinov2_equals_its_parts_on_its_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("dinov2").eval()
    mask = hide(monkeypatch, 0, 9)
    views = crops(method)
    both = torch.cat(views[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly's own imports
        from lightly.loss.msn_loss import sinkhorn
    with torch.no_grad():
        loss, metrics = method(views, 10)
        out = method.encoder(both, mask=mask, token=method.mask_token)
        pooled = torch.cat([out.pooled, *(method.encoder(v).pooled for v in views[2:])])
        student = method.head(pooled).unflatten(0, (4, BATCH))
        seen = method.teacher(both)
        # Both crops are balanced as one batch.
        target = sinkhorn(torch.exp(method.teacher_head(seen.pooled) / 0.04))
        first = dino_loss.dino(student, target.unflatten(0, (2, BATCH)), 0.1)
        hidden = [t.patch.flatten(1, 2)[:, [0, 9]].flatten(0, 1) for t in (out, seen)]
        q = sinkhorn(torch.exp(method.teacher_patch_head(hidden[1]) / 0.04))
        second = -(q * (method.patch_head(hidden[0]) / 0.1).log_softmax(-1)).sum(-1).mean()
        third = koleo(out.pooled[:BATCH]) + koleo(out.pooled[BATCH:])
    assert metrics["koleo"].item() == pytest.approx(third.item(), rel=1e-4)
    assert loss.item() == pytest.approx((first + second + 0.1 * third).item(), rel=1e-4)
    assert not [n for n, _ in method.named_buffers() if "centre" in n]  # no centre is left over


@pytest.mark.parametrize("name", ["ibot", "dinov2", "simmim", "msn"])
def test_backbones_with_registers(name: str) -> None:
    torch.manual_seed(0)
    plugin = plugins.load("methods", name)
    encoder = models.create("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4})
    assert encoder.n_prefix == 5
    method = plugin.Method(encoder, plugin.Config(**TABLE[name][0]), TASK)
    loss, _ = method(crops(method), 10)
    grads = gradients(method, loss)
    assert loss.isfinite()
    assert grads["encoder.model.reg_token"].abs().max() > 0


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_teacher_is_free_of_stochastic_depth(name: str) -> None:
    plugin = plugins.load("methods", name)
    encoder = models.create("vit_tiny_patch16_224", {**VIT, "drop_path_rate": 0.5})
    method = plugin.Method(encoder, plugin.Config(**TABLE[name][0]), TASK).train()
    x = torch.randn(4, 3, SIZE, SIZE)
    assert torch.equal(method.teacher(x).pooled, method.teacher(x).pooled)
    assert not torch.equal(method.encoder(x).pooled, method.encoder(x).pooled)


# --- SimMIM and CL+MIM


def test_simmim_sees_no_hidden_pixel_and_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("simmim").eval()
    mask = torch.zeros(BATCH, 16, dtype=torch.bool)
    mask[:, 1] = True
    monkeypatch.setattr(_masks, "cell_masks", lambda *_: mask)
    got = []
    method.pixels.decoder.register_forward_hook(lambda _m, _i, out: got.append(out))
    view = crops(method)[0]
    other = view.clone()
    other[:, :, :8, 8:16] = 3.0  # patch 1, hidden
    losses = [method([v], 0)[0] for v in (view, other)]
    assert got[0].shape == (BATCH, 16, 8 * 8 * 3)
    assert torch.equal(got[0], got[1])
    assert losses[0] != losses[1]
    (grad,) = torch.autograd.grad(losses[0], got[0])
    assert grad[~mask].abs().max() == 0
    assert grad[mask].abs().min() > 0


def test_simmim_decoder_puts_pixels_where_a_pixel_shuffle_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss of linear + patchify is that of the paper's 1x1 convolution + PixelShuffle."""
    method = build("simmim").eval()
    mask = torch.arange(16).lt(6).expand(BATCH, 16)
    monkeypatch.setattr(_masks, "cell_masks", lambda *_: mask)
    view = crops(method)[0]
    with torch.no_grad():
        loss = method([view], 0)[0].item()
        patch = method.encoder(view, mask=mask, token=method.pixels.mask_token).patch
        # Our outputs run (row, column, channel); PixelShuffle wants (channel, row, column).
        linear = method.pixels.decoder
        conv = nn.Conv2d(48, 192, 1)
        conv.weight.copy_(
            linear.weight.unflatten(0, (64, 3)).transpose(0, 1).reshape(192, 48, 1, 1)
        )
        conv.bias.copy_(linear.bias.unflatten(0, (64, 3)).T.flatten())
        image = nn.PixelShuffle(8)(conv(patch.permute(0, 3, 1, 2)))
    big = mask.unflatten(1, (1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    want = ((image - view).abs() * big).sum() / big.sum() / 3
    assert loss == pytest.approx(want.item(), rel=1e-5)


def hybrid(weight: float) -> tuple[Any, dict[str, Tensor], float]:
    """The method, its gradients and loss, always from the same weights and masks."""
    method = build("cl_mim", weight=weight).eval()
    loss = one_loss(method)
    return method, gradients(method, loss), loss.item()


def test_cl_mim_at_its_ends_is_simmim_and_moco() -> None:
    for weight, name in ((0.0, "simmim"), (1.0, "moco_v3")):
        method, grads, value = hybrid(weight)
        own = {"hidden": 64, "out": 32} if name == "moco_v3" else {"mask_patch": 8}
        single = build(name, seed=1, **own).eval()
        same = {n: t for n, t in method.state_dict().items() if n in single.state_dict()}
        single.load_state_dict(same)  # strict: the single method's whole state is there
        torch.manual_seed(0)  # as one_loss does
        loss, _ = single(crops(method)[: 2 if name == "moco_v3" else 1], 10)
        assert loss.item() == pytest.approx(value, rel=1e-6)
        alone = gradients(single, loss)
        for n, g in grads.items():
            if n in alone:
                torch.testing.assert_close(g, alone[n], rtol=1e-5, atol=1e-7)
            else:
                assert g.abs().max() == 0, n  # the head of weight 0


def test_cl_mim_gradient_is_linear_in_the_weight() -> None:
    ends = [hybrid(w)[1] for w in (0.0, 1.0)]
    _, middle, _ = hybrid(0.3)
    for n, g in middle.items():
        torch.testing.assert_close(g, 0.7 * ends[0][n] + 0.3 * ends[1][n], rtol=1e-4, atol=1e-6)
    assert any(g.abs().max() > 0 for n, g in middle.items() if n.startswith("pixels"))


# --- MSN and PMSN


def test_msn_anchors_drop_patches_and_the_target_does_not() -> None:
    method = build("msn", drop=0.3)
    seen: dict[str, list[tuple[int, ...]]] = {"encoder": [], "teacher": []}
    for part, shapes in seen.items():
        getattr(method, part).model.blocks[0].register_forward_hook(
            lambda _m, i, _o, shapes=shapes: shapes.append(tuple(i[0].shape))
        )
    one_loss(method)
    # With CLS: 11 of 16 patches of the large anchor, 2 of 4 of both small ones.
    # Blocks see all tokens of a group in one matrix.
    assert seen["encoder"] == [(BATCH * 12, 48), (2 * BATCH * 3, 48)]
    assert seen["teacher"] == [(BATCH * 17, 48)]


def test_msn_equals_its_loss_on_its_own_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("msn", drop=0.0, iterations=0, weight=0.5, prior=0.8).eval()
    views = crops(method)
    with torch.no_grad():
        loss, metrics = method(views, 10)
        anchors = torch.stack([method.projector(method.encoder(v).pooled) for v in views[1:]])
        z = method.teacher_projector(method.teacher(views[0]).pooled)
        q = nn.functional.normalize(method.prototypes, dim=1)
        cosine = [nn.functional.normalize(x, dim=-1) @ q.T for x in (anchors, z)]
        target = (cosine[1] / 0.025).softmax(-1)
        p = (cosine[0] / 0.1).softmax(-1)
        mean, prior = p.mean((0, 1)), torch.arange(1, 17).float() ** -0.8
        gap = (mean * (mean * prior.sum() / prior).log()).sum()
        want = -(target * p.log()).sum(-1).mean() + 0.5 * gap
        use = target.mean(0)
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    assert metrics["entropy"].item() == pytest.approx(-(use * use.log()).sum().item(), rel=1e-4)
    uniform = (prior.sum() / prior / 16).log().mean().item()
    assert float(metrics["chance"]) == pytest.approx(math.log(16) + 0.5 * uniform, rel=1e-5)


def test_pmsn_differs_from_msn_in_options_only() -> None:
    msn, pmsn = (plugins.load("methods", n) for n in ("msn", "pmsn"))
    assert pmsn.Method is msn.Method
    assert (pmsn.Config().iterations, pmsn.Config().prior) == (3, 0.25)
    assert pmsn.PAPER["iterations"] == 0
    one = one_loss(build("pmsn", iterations=3, prior=0.0))
    assert one.item() == one_loss(build("msn")).item()
    assert one_loss(build("pmsn")).item() != one.item()
    torch.testing.assert_close(
        build("pmsn").prior.double(), msn_loss.power_law(16, 0.25), rtol=1e-6, atol=0
    )


def test_pmsn_takes_a_histogram_and_a_direction() -> None:
    histogram = tuple(float(k) for k in range(16, 0, -1))
    method = build("pmsn", prior=histogram)
    torch.testing.assert_close(method.prior, torch.tensor(histogram) / 136)
    other = build("pmsn", prior=histogram, direction="prior_to_mean")
    assert one_loss(method).item() != one_loss(other).item()


def test_pmsn_prior_draws_the_use_of_prototypes() -> None:
    """With the regulariser alone the anchors' mean goes to the prior."""
    method = build("pmsn", prior=2.0, weight=50.0)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 2e-3)
    views = crops(method)
    gaps = []
    for step in range(25):
        loss = method(views, step)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gaps.append(loss.item())
    assert gaps[-1] < 0.3 * gaps[0]


def test_msn_keeps_every_patch_of_a_cnn(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("msn", backbone="test_efficientnet")
    monkeypatch.setattr(mae_method, "random_mask", lambda *_: pytest.fail("a CNN drops nothing"))
    assert one_loss(method).isfinite()


# --- What they cannot do


@pytest.mark.parametrize("name", ["ibot", "dinov2", "simmim", "cl_mim"])
def test_cnns_are_refused(name: str) -> None:
    with pytest.raises(HeadwaterError, match="ViT"):
        build(name, backbone="test_efficientnet")


def test_impossible_masks_are_explained() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("ibot", {"mask_ratio": (0.0, 0.05)}, "masks none of 16"),
        ("dinov2", {"mask_ratio": (0.0, 0.05)}, "masks none of 16"),
        ("simmim", {"mask_patch": 12}, "multiple of the patch size 8"),
        ("simmim", {"mask_patch": 0}, "multiple of the patch size 8"),
        ("simmim", {"mask_patch": 32}, "hides 1 of 1"),
        ("simmim", {"mask_patch": 8, "ratio": 0.99}, "hides 16 of 16"),
        ("cl_mim", {"mask_patch": 8, "ratio": 0.0}, "hides 0 of 16"),
        ("msn", {"prior": (0.5, 0.5)}, "prior of 2 masses"),
        ("pmsn", {"prior": (0.0,) * 16}, "positive"),
    ]
    for name, options, message in cases:
        with pytest.raises(HeadwaterError, match=message):
            build(name, **options)
    plugin = plugins.load("methods", "ibot")
    encoder = models.create("vit_tiny_patch16_224", VIT)
    with pytest.raises(HeadwaterError, match="masks none of 1 patches"):
        plugin.Method(encoder, plugin.Config(), Task(8, STEPS))
