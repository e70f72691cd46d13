"""Stems: grids, FLOPs, layer by layer what the papers say, checkpoints, and what cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_core import models, stems
from ssl_core.errors import HeadwaterError
from ssl_core.models import Encoder

VIT, RESNET, CONVNEXT = "vit_tiny_patch16_224", "resnet10t", "convnext_atto"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
SLIM = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}
# name, args, stem, stride of the whole encoder
ALL = [
    (VIT, TINY, "patchify", 8),
    (VIT, TINY, "conv", 8),
    (VIT, {**TINY, "patch_size": 4}, "conv", 4),
    (VIT, {**TINY, "patch_size": 16}, "conv", 16),
    (VIT, {**TINY, "reg_tokens": 2}, "conv", 8),
    (RESNET, {}, "resnet", 32),
    (RESNET, {}, "patchify", 32),
    (RESNET, {}, "cifar", 8),
    (CONVNEXT, SLIM, "patchify", 32),
    (CONVNEXT, SLIM, "resnet", 32),
    (CONVNEXT, SLIM, "conv", 32),
]
each = pytest.mark.parametrize(
    ("name", "args", "stem", "stride"), ALL, ids=lambda v: "" if isinstance(v, dict) else str(v)
)


def make(name: str, stem: str, seed: int = 0, **args: Any) -> Encoder:
    torch.manual_seed(seed)
    return models.create(name, {**args, "stem": stem}).eval()


@each
def test_all_stems_of_a_model_give_the_grid_that_its_stride_says(
    name: str, args: dict[str, Any], stem: str, stride: int
) -> None:
    encoder = make(name, stem, **args)
    assert encoder.stride == stride
    x = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        out = encoder(x)
    assert out.patch.shape == (2, 32 // stride, 64 // stride, encoder.embed_dim)
    assert out.pooled.shape == (2, encoder.embed_dim)
    assert out.pooled.isfinite().all()


@each
def test_checkpoints_keep_the_stem(
    tmp_path: Path, name: str, args: dict[str, Any], stem: str, stride: int
) -> None:
    encoder = make(name, stem, **args, in_chans=4)
    models.save(encoder, tmp_path, {})
    again = models.load(tmp_path).eval()
    x = torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x).pooled, encoder(x).pooled)
    assert (again.stride, again.channels, again.args["stem"]) == (stride, 4, stem)


@each
def test_every_parameter_gets_a_gradient(
    name: str, args: dict[str, Any], stem: str, stride: int
) -> None:
    encoder = make(name, stem, **args).train()
    encoder(torch.randn(2, 3, 64, 64)).pooled.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_the_seed_decides_the_weights() -> None:
    one, two, other = (make(VIT, "conv", seed, **TINY) for seed in (1, 1, 2))
    key = "patch_embed.proj.3.weight"
    first = one.model.state_dict()[key]
    assert torch.equal(first, two.model.state_dict()[key])
    assert not torch.equal(first, other.model.state_dict()[key])


@pytest.mark.parametrize(("name", "own"), [(VIT, "patchify"), (RESNET, "resnet")])
def test_a_models_own_stem_changes_nothing(name: str, own: str) -> None:
    args = TINY if name == VIT else {}
    torch.manual_seed(0)
    plain = models.create(name, args).model.state_dict()
    named = make(name, own, **args).model.state_dict()
    assert plain.keys() == named.keys()
    assert all(torch.equal(plain[k], named[k]) for k in plain)


# ---- the conv stem of ViTs (arXiv 2106.14881) --------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "widths"), [(16, [24, 48, 96, 192]), (8, [48, 96, 192]), (4, [96, 192])]
)
def test_conv_stem_layer_by_layer(patch: int, widths: list[int]) -> None:
    encoder = make(VIT, "conv", patch_size=patch)
    *layers, last = encoder.model.patch_embed.proj
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == widths
    assert all((c.kernel_size, c.stride, c.padding) == ((3, 3), (2, 2), (1, 1)) for c in convs)
    assert all(c.bias is None for c in convs)
    assert [type(m) for m in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * len(widths)
    assert (last.kernel_size, last.in_channels, last.out_channels) == ((1, 1), 192, 192)
    assert last.bias is not None
    assert len(encoder.model.blocks) == 11  # of 12


@pytest.mark.parametrize("name", [VIT, "vit_small_patch16_224"])
def test_conv_stem_keeps_the_flops_at_224(name: str) -> None:
    def flops(**args: Any) -> int:
        with torch.device("meta"):
            encoder = models.create(name, args)
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                encoder(torch.empty(1, 3, 224, 224))
        return counter.get_total_flops()

    assert flops(stem="conv") == pytest.approx(flops(), rel=0.1)


def test_conv_stem_takes_other_sizes_and_refuses_odd_ones() -> None:
    encoder = make(VIT, "conv", **TINY)
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 16, 40)).patch.shape == (1, 2, 5, 24)
    with pytest.raises(HeadwaterError, match="use 32 or 40 px"):
        encoder(torch.randn(1, 3, 36, 32))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_hidden_pixels_do_not_leak_through_overlapping_kernels(mode: str) -> None:
    encoder = make(VIT, "conv", **TINY).train(mode == "train")
    x = torch.randn(2, 3, 32, 32)
    y = x.clone()
    y[:, :, 8:16, 16:24] = 9.0  # patch 6
    keep = torch.tensor([[5, 7, 10, 2]]).expand(2, 4)  # its neighbours
    token, mask = torch.randn(24), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 6] = True
    with torch.no_grad():
        assert torch.equal(encoder(x, keep=keep).patch, encoder(y, keep=keep).patch)
        masked = [encoder(v, mask=mask, token=token).patch for v in (x, y)]
        assert torch.equal(*masked)
        assert not torch.equal(encoder(x).patch, encoder(y).patch)


def test_all_patches_kept_is_the_plain_forward_with_a_conv_stem() -> None:
    encoder = make(VIT, "conv", **TINY, reg_tokens=2)
    x, every = torch.randn(2, 3, 32, 32), torch.arange(16).expand(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(x, keep=every).patch, encoder(x).patch.flatten(1, 2), rtol=1e-4, atol=1e-5
        )


# ---- CNNs --------------------------------------------------------------------------------------


def shape(conv: Any) -> tuple[Any, ...]:
    return conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding


@pytest.mark.parametrize("name", ["resnet18", RESNET])  # a plain and a deep stem of timm's
def test_resnet_stems_layer_by_layer(name: str) -> None:
    patchify, cifar = (make(name, s).model for s in ("patchify", "cifar"))
    assert shape(patchify.conv1) == (3, 64, (4, 4), (4, 4), (0, 0))
    assert shape(cifar.conv1) == (3, 64, (3, 3), (1, 1), (1, 1))
    for model in (patchify, cifar):
        assert isinstance(model.bn1, nn.BatchNorm2d)
        assert isinstance(model.maxpool, nn.Identity)
    reductions = [f["reduction"] for f in make(name, "cifar").model.feature_info]
    assert reductions == [1, 1, 2, 4, 8]


def test_convnext_stems_layer_by_layer() -> None:
    conv, norm, pool = make(CONVNEXT, "resnet", **SLIM).model.stem
    assert shape(conv) == (3, 8, (7, 7), (2, 2), (3, 3))
    assert norm.normalized_shape == (8,)
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)
    early, norm = make(CONVNEXT, "conv", **SLIM).model.stem
    strided = [m for m in early if isinstance(m, nn.Conv2d)]
    assert [shape(c)[:4] for c in strided] == [
        (3, 4, (3, 3), (2, 2)),
        (4, 8, (3, 3), (2, 2)),
        (8, 8, (1, 1), (1, 1)),
    ]
    assert norm.normalized_shape == (8,)


# ---- what cannot be had ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "stem", "says"),
    [
        (VIT, TINY, "cifar", "choose patchify or conv"),
        (VIT, TINY, "convs", "choose patchify or conv"),
        (RESNET, {}, "conv", "choose resnet or patchify or cifar"),
        (CONVNEXT, SLIM, "cifar", "choose patchify or resnet or conv"),
        (CONVNEXT, {**SLIM, "patch_size": 2}, "conv", "choose patchify$"),
        ("mobilenetv3_small_050", {}, "patchify", "leave it out"),
        (VIT, {**TINY, "patch_size": 14}, "conv", "set patch_size to 4, 8 or 16"),
        (VIT, {**TINY, "depth": 1}, "conv", "set depth to at least 2"),
        (VIT, {**TINY, "embed_dim": 18}, "conv", "is not a multiple of 4"),
    ],
)
def test_a_stem_that_does_not_suit_is_refused(
    name: str, args: dict[str, Any], stem: str, says: str
) -> None:
    with pytest.raises(HeadwaterError, match=says):
        models.create(name, {**args, "stem": stem})


def test_a_hybrid_keeps_its_own_cnn() -> None:
    with torch.device("meta"), pytest.raises(HeadwaterError, match="choose patchify"):
        models.create("vit_tiny_r_s16_p8_224", {"stem": "conv"})


def test_widths_double_up_to_the_last() -> None:
    stem = stems.conv_stem(5, 32, 3)
    assert [m.in_channels for m in stem if isinstance(m, nn.Conv2d)] == [5, 8, 16, 32]
    assert stem(torch.randn(1, 5, 24, 16)).shape == (1, 32, 3, 2)
