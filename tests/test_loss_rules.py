"""What every loss obeys: one row per loss, a call on two (4, 5) batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_core.losses import dino, mae
from ssl_core.losses.nt_xent import nt_xent

T64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = T64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def call_nt_xent(a: Tensor, b: Tensor) -> Tensor:
    return nt_xent(a, b, 0.2)


def call_dino(student: Tensor, teacher: Tensor) -> Tensor:
    centre = torch.zeros(5, dtype=teacher.dtype)
    s, t = torch.stack([student, student.flip(1)]), torch.stack([teacher, teacher.flip(1)])
    return dino.dino(s, dino.targets(t, centre, 0.07), 0.1)


def call_mae(pred: Tensor, target: Tensor) -> Tensor:
    hidden = torch.tensor([[True]] * len(pred))
    return mae.mae(pred.unsqueeze(1), target.unsqueeze(1), hidden)


# loss: the call, and whether its second argument learns too (else it is a target).
LOSSES = {
    "dino": (call_dino, False),
    "mae": (call_mae, False),
    "nt_xent": (call_nt_xent, True),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_and_target_without_gradient(name: str) -> None:
    call, both_learn = LOSSES[name]
    a, b = normal(4, 5).requires_grad_(), normal(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda x: call(x, b), a)
    b.requires_grad_()
    call(a, b).backward()
    assert (b.grad is not None) == both_learn


@pytest.mark.parametrize("name", LOSSES)
def test_batch_order_does_not_matter(name: str) -> None:
    call, _ = LOSSES[name]
    a, b, order = normal(4, 5), normal(4, 5, seed=1), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(call(a[order], b[order]), call(a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_finite_on_zeros_and_on_equal_rows(name: str) -> None:
    call, _ = LOSSES[name]
    for a in (torch.zeros(4, 5), torch.ones(4, 5)):
        a.requires_grad_()
        loss = call(a, a.detach())
        loss.backward()
        assert a.grad is not None
        assert loss.isfinite()
        assert a.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_computed_in_fp32_under_autocast(name: str) -> None:
    call, _ = LOSSES[name]
    a, b = normal(4, 5).bfloat16(), normal(4, 5, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = call(a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, call(a.float(), b.float()), rtol=1e-6, atol=1e-6)
