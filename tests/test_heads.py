"""DINO's prototypes: the hand-written gradient against autograd's own of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.heads import PrototypeHead, _Cosines


def leaves(rows: int, prototypes: int, width: int) -> tuple[Tensor, Tensor]:
    """x of no unit length too, and prototypes of very different lengths, float64."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=rng, dtype=torch.float64)
    lengths = 10.0 ** torch.linspace(-2, 2, prototypes, dtype=torch.float64).unsqueeze(1)
    w = torch.randn(prototypes, width, generator=rng, dtype=torch.float64) * lengths
    return x.requires_grad_(), w.requires_grad_()


def test_cosines_and_their_gradient_are_those_of_normalised_prototypes() -> None:
    x, w = leaves(6, 9, 5)
    found = _Cosines.apply(x, w, False)
    expected = F.linear(x, F.normalize(w, dim=-1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    weights = torch.randn_like(expected)
    mine = torch.autograd.grad((found.sin() * weights).sum(), (x, w))
    theirs = torch.autograd.grad((expected.sin() * weights).sum(), (x, w))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradient_by_differences() -> None:
    assert torch.autograd.gradcheck(lambda x, w: _Cosines.apply(x, w, False), leaves(3, 4, 5))


def test_frozen_prototypes_get_zeros_and_the_rest_learns() -> None:
    head = PrototypeHead(6, 8, 5, 7)
    x = torch.randn(4, 6)
    free = torch.autograd.grad(head(x).square().sum(), list(head.mlp.parameters()))
    head(x, frozen=True).square().sum().backward()
    assert head.prototypes.grad is not None
    assert torch.equal(head.prototypes.grad, torch.zeros_like(head.prototypes))
    for p, gradient in zip(head.mlp.parameters(), free, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("bf16", [False, True])
def test_head_gives_cosines_of_any_leading_shape(bf16: bool) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, 8, 5, 7)
    x = torch.randn(2, 3, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = head(x)
        logits.float().square().sum().backward()
    unit = F.normalize(head.mlp(x), dim=-1)
    expected = unit @ F.normalize(head.prototypes, dim=-1).T
    near = 0.03 if bf16 else 1e-5
    assert logits.shape == (2, 3, 7)
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=near)
    reference = torch.autograd.grad(expected.square().sum(), head.prototypes)[0]
    assert head.prototypes.grad is not None
    off = (head.prototypes.grad - reference).norm() / reference.norm()
    assert off < (0.05 if bf16 else 1e-4)
