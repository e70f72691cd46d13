"""Packed passes equal separate ones, values and gradients; recomputation changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_core import models, packed
from ssl_core.heads import MaskedDecoder
from ssl_core.models import Crops, EncoderOutput

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "layer scale, qk norm": ("vit_tiny_patch16_224", {"init_values": 0.1, "qk_norm": True}),
    "average pooling": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": 32, "patch_size": 8}),
}


def encoder(name: str) -> models.Encoder:
    model, args = VITS[name]
    torch.manual_seed(0)
    return models.create(model, SMALL | args)


def crops(dim: int) -> list[Crops]:
    g = torch.Generator().manual_seed(1)
    wide, small = torch.randn(4, 3, 32, 32, generator=g), torch.randn(6, 3, 16, 16, generator=g)
    mask = torch.rand(4, 16, generator=g) < 0.4
    token = torch.randn(dim, generator=g)
    return [Crops(wide, mask=mask, token=token, need=mask), Crops(small, need="pooled")]


def sizes(outs: list[EncoderOutput]) -> Tensor:
    """A number that every output takes part in, each with a weight of its own."""
    parts = [t.flatten() for out in outs for t in (out.pooled, out.patch) if t is not None]
    x = torch.cat(parts)
    return (x * torch.linspace(-1, 1, len(x))).sum()


def gradients(net: models.Encoder, outs: list[EncoderOutput]) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    sizes(outs).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", VITS)
def test_one_pass_equals_one_for_each_size(name: str) -> None:
    net = encoder(name)
    assert not net.unpackable
    apart = net.many(crops(net.embed_dim))
    wanted = gradients(net, apart)
    net.packing = True
    together = net.many(crops(net.embed_dim))
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a.pooled, b.pooled, atol=1e-5, rtol=1e-4)
        assert (a.patch is None) == (b.patch is None)
        if a.patch is not None:
            torch.testing.assert_close(a.patch, b.patch, atol=1e-5, rtol=1e-4)
    close(gradients(net, together), wanted)


@pytest.mark.parametrize("name", VITS)
def test_what_is_not_needed_changes_nothing_else(name: str) -> None:
    """The whole forward pass of timm is the oracle."""
    net = encoder(name).eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    whole: Any = net(x)
    torch.testing.assert_close(whole.pooled, net.model(x), atol=1e-5, rtol=1e-4)
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.5
    some: Any = net(x, need=mask)
    torch.testing.assert_close(some.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
    patches = whole.patch.flatten(1, 2)[mask]  # (B, h, w, D) -> (M, D)
    torch.testing.assert_close(some.patch, patches, atol=1e-5, rtol=1e-4)
    pooled: Any = net(x, need="pooled")
    torch.testing.assert_close(pooled.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
    assert pooled.patch is None


@pytest.mark.parametrize("packing", [False, True])
def test_recomputation_keeps_gradients_and_holds_fewer_tensors(packing: bool) -> None:
    net = encoder("registers")
    net.packing = packing

    def saved() -> tuple[int, dict[str, Tensor]]:
        held: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            outs = net.many(crops(net.embed_dim))
        return sum(held.values()), gradients(net, outs)

    much, wanted = saved()
    net.checkpointing = True
    little, found = saved()
    close(found, wanted)
    assert little < much / 2


def test_stochastic_depth_drops_whole_sequences() -> None:
    torch.manual_seed(0)
    net = models.create("vit_tiny_patch16_224", SMALL | {"drop_path_rate": 0.5})
    block = list(net.model.blocks)[-1]  # type: ignore[arg-type,call-overload]
    plan = packed.Plan(((200, 4), (300, 2)))
    x = torch.ones(200 * 4 + 300 * 2, 1)
    out = packed._drop(block.drop_path1.train(), x, plan)
    groups = out[:800].view(200, 4), out[800:].view(300, 2)
    for group in groups:
        assert (group == group[:, :1]).all(), "a sequence is dropped as a whole"
    share = torch.cat([group[:, 0] for group in groups]).eq(0).float().mean()
    assert 0.4 < share < 0.6
    assert set(out.unique().tolist()) == {0.0, 2.0}  # kept ones are scaled up


def test_a_model_of_unknown_blocks_is_not_packed() -> None:
    net = models.create("vit_tiny_patch16_224", SMALL | {"patch_drop_rate": 0.25})
    net.packing = True
    assert "drops patches" in net.unpackable
    outs = net.eval().many([Crops(torch.randn(2, 3, s, s), need="pooled") for s in (32, 16)])
    assert [len(out.pooled) for out in outs] == [2, 2]
    assert models.create("resnet10t", {}).unpackable == "it is no ViT"


def test_the_decoder_predicts_hidden_patches_alone_as_it_would_among_all() -> None:
    torch.manual_seed(0)
    decoder = MaskedDecoder(24, 32, 2, 2, (4, 4), 5)
    order = torch.rand(3, 16).argsort(1)
    keep, hidden = order[:, :6], order[:, 6:].sort(1).values
    cls, kept = torch.randn(3, 24), torch.randn(3, 6, 24)
    every = decoder(cls, kept, keep)
    wanted = every.gather(1, hidden.unsqueeze(-1).expand(-1, -1, 5))
    torch.testing.assert_close(decoder(cls, kept, keep, hidden), wanted, atol=1e-5, rtol=1e-4)
