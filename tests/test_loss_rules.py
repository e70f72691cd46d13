"""What every loss obeys: one row per loss, a call on two (4, 5) batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_core.losses import dino, generalised, info_nce, mae, msn, vicregl
from ssl_core.losses.cross_entropy import cross_entropy, prototype
from ssl_core.losses.ibot import ibot
from ssl_core.losses.koleo import koleo
from ssl_core.losses.negative_cosine import byol, negative_cosine
from ssl_core.losses.nt_xent import nt_xent
from ssl_core.losses.rince import rince
from ssl_core.losses.simmim import simmim
from ssl_core.losses.sinkhorn import sinkhorn
from ssl_core.losses.supcon import supcon
from ssl_core.losses.vicreg import vicreg

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


def call_supcon(a: Tensor, b: Tensor) -> Tensor:
    labels = b.argmax(1)  # they follow the rows of a shuffled batch
    return supcon(torch.stack([a, b]), labels, 0.2)


def call_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits, target.argmax(1), 0.1, balanced=True)


def call_prototype(z: Tensor, target: Tensor) -> Tensor:
    centres = torch.eye(5, dtype=z.dtype) - 0.25
    return prototype(z, centres, target.argmax(1), 0.2, exclude_own=True)


def call_vicregl(a: Tensor, b: Tensor) -> Tensor:
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [0.1, 0.2, 0.6, 0.5, 1.0]])
    places = [vicregl.cells(one.expand(4, 5), (1, 5)) for one in box]
    maps = [a.unsqueeze(-1), b.unsqueeze(-1)]  # five cells of width 1
    return vicregl.pooled([a, b]) + vicregl.maps(maps, places, (3, 2))


def call_moco(query: Tensor, key: Tensor) -> Tensor:
    return info_nce.moco(query, key, 0.2)


def call_clip(a: Tensor, b: Tensor) -> Tensor:
    return info_nce.clip(a, b, torch.tensor(5.0, dtype=a.dtype))


def call_vicreg(a: Tensor, b: Tensor) -> Tensor:
    return vicreg(a, b)[0]


def call_rince(a: Tensor, b: Tensor) -> Tensor:
    return rince(a, b, 0.2, 0.5, 0.1)


def call_generalised(a: Tensor, b: Tensor) -> Tensor:
    return generalised.nt_xent(a, b, 0.2, 0.7)


def call_decoupled(a: Tensor, b: Tensor) -> Tensor:
    return generalised.decoupled(a, b, 0.2, 0.7)


def call_swd(a: Tensor, b: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same directions and sample of the prior in every call
        return generalised.swd(a, b, "uniform-sphere")


def call_ibot(student: Tensor, teacher: Tensor) -> Tensor:
    target = dino.targets(teacher.unsqueeze(0), torch.zeros(5, dtype=teacher.dtype), 0.07)[0]
    return ibot(student, target, torch.ones(len(student), 1, dtype=torch.bool), 0.1)


def call_sinkhorn(student: Tensor, teacher: Tensor) -> Tensor:
    return dino.dino(torch.stack([student] * 2), sinkhorn(teacher, 0.07).expand(2, -1, -1), 0.1)


def call_koleo(x: Tensor, _: Tensor) -> Tensor:
    return koleo(x)


def call_simmim(pred: Tensor, target: Tensor) -> Tensor:
    return simmim(pred.unsqueeze(1), target.unsqueeze(1), torch.tensor([[True]] * len(pred)))


def call_msn(anchors: Tensor, z: Tensor) -> Tensor:
    prototypes = normal(6, 5, seed=3).bfloat16().to(z.dtype)  # equal in every precision
    target = msn.targets(z, prototypes, 0.1, 0.25, 3)
    return msn.msn(anchors.unsqueeze(0), target, prototypes, 0.1)


# loss: the call, and whether its second argument learns too (else it is a target).
LOSSES = {
    "dino": (call_dino, False),
    "mae": (call_mae, False),
    "ibot": (call_ibot, False),
    "sinkhorn": (call_sinkhorn, False),
    "koleo": (call_koleo, False),
    "simmim": (call_simmim, False),
    "msn": (call_msn, False),
    "nt_xent": (call_nt_xent, True),
    "byol": (byol, False),
    "negative_cosine": (negative_cosine, False),
    "moco": (call_moco, False),
    "clip": (call_clip, True),
    "vicreg": (call_vicreg, True),
    "rince": (call_rince, True),
    "generalised": (call_generalised, True),
    "decoupled": (call_decoupled, True),
    "swd": (call_swd, True),
    "supcon": (call_supcon, True),
    "cross_entropy": (call_cross_entropy, False),
    "prototype": (call_prototype, False),
    "vicregl": (call_vicregl, True),
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
