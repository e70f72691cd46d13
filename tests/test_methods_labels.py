"""What is special to the methods that use labels, and to VICRegL."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_core import models, plugins
from ssl_core.augment import Augmenter
from ssl_core.errors import HeadwaterError
from ssl_core.losses import vicregl as vicregl_loss
from ssl_core.methods import supcon_ce
from ssl_core.types import Task

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2}
HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 32, "out": 16},
    "supcon": {"hidden": 32, "out": 16},
    "supcon_ce": {"hidden": 32, "out": 16},
    "supervised": {},
    "vicregl": {"hidden": 32, "out": 16, "local_hidden": 32, "local_out": 8},
}
BATCH, STEPS = 8, 10
LABELS = torch.tensor([0, 1, 0, -1, 2, 1, -1, 0])
NONE = torch.full((BATCH,), -1)


def build(name: str, backbone: str = "vit", classes: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    plugin = plugins.load("methods", name)
    vit = backbone == "vit"
    encoder = models.create("vit_tiny_patch16_224" if vit else backbone, VIT if vit else {})
    cfg = plugin.Config(**HEADS[name] | options)
    return plugin.Method(encoder, cfg, Task(32, STEPS, classes))


def images() -> Tensor:
    g = torch.Generator().manual_seed(3)
    coarse = torch.rand(BATCH, 3, 4, 4, generator=g)
    fine = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    return (fine * 255).byte()


def cut(method: Any) -> tuple[list[Tensor], list[Tensor]]:
    augmenter = Augmenter(method.views, (0.5,) * 3, (0.25,) * 3)
    return augmenter.with_boxes(images(), torch.Generator().manual_seed(0))


def run(method: Any, step: int = 0, labels: Tensor = LABELS) -> tuple[Tensor, dict[str, Any]]:
    """Loss and metrics; gradients are fresh."""
    method.zero_grad()
    loss, metrics = method(cut(method)[0], step, labels=labels)
    loss.backward()
    return loss.detach(), metrics


def size(parameters: Any) -> float:
    return max(float(p.grad.abs().max()) for p in parameters)


# --- labels


@pytest.mark.parametrize("name", ["supcon_ce", "supervised"])
def test_without_labels_at_all_the_error_says_so(name: str) -> None:
    with pytest.raises(HeadwaterError, match="finds no labelled image"):
        build(name, classes=0)


def test_supcon_without_labels_is_simclr() -> None:
    supcon, simclr = build("supcon", classes=0), build("simclr", temperature=0.1)
    simclr.load_state_dict(supcon.state_dict())
    views = cut(supcon)[0]
    want = simclr(views, 0)[0]
    torch.testing.assert_close(supcon(views, 0, labels=NONE)[0], want)
    assert (supcon(views, 0, labels=LABELS)[0] - want).abs() > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("supcon", {}),
        ("supcon_ce", {}),
        ("supcon_ce", {"contrast": "prototype"}),
        ("supcon_ce", {"contrast": "prototype", "exclude_own": True}),
        ("supervised", {"label_smoothing": 0.1}),
    ],
)
@pytest.mark.parametrize("step", [0, STEPS // 2, STEPS])
def test_a_batch_without_labels_is_finite_and_in_the_graph(
    name: str, options: dict[str, Any], step: int
) -> None:
    method = build(name, **options)
    loss, metrics = run(method, step, NONE)
    assert loss.isfinite()
    assert all(math.isfinite(float(v)) for v in metrics.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    if name == "supervised" or options.get("contrast") == "prototype":
        assert loss == 0
        assert size(method.parameters()) == 0


@pytest.mark.parametrize("name", ["supcon", "supcon_ce", "supervised"])
def test_labels_work_on_a_cnn(name: str) -> None:
    method = build(name, backbone="test_efficientnet")
    loss, _ = run(method)
    assert loss.isfinite()
    assert size(method.encoder.parameters()) > 0


def test_supervised_measures_its_accuracy_and_chance() -> None:
    method = build("supervised")
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.zero_()
    loss, metrics = run(method)
    assert loss.item() == pytest.approx(math.log(3)) == pytest.approx(metrics["chance"])
    with torch.no_grad():
        method.classifier.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    assert float(run(method)[1]["accuracy"]) == pytest.approx(3 / 6)  # of the labelled six


# --- SupCon -> CE


@pytest.mark.parametrize(
    ("curve", "middle"), [("parabolic", 0.75), ("linear", 0.5), ("cosine", 0.5), ("step", 0.0)]
)
def test_alpha_goes_from_one_to_zero(curve: supcon_ce.Curve, middle: float) -> None:
    values = [supcon_ce.alpha(curve, k / 10) for k in range(12)]
    assert values[0] == 1
    assert values[5] == pytest.approx(middle)
    assert values[10] == pytest.approx(0, abs=1e-15)
    assert values[11] == values[10]  # beyond the end
    assert values == sorted(values, reverse=True)


def test_alpha_that_switches_or_stands_still() -> None:
    assert [supcon_ce.alpha("step", d, switch=0.3) for d in (0.29, 0.3)] == [1, 0]
    assert {supcon_ce.alpha("constant", d, level=0.4) for d in (0.0, 0.5, 1.0)} == {0.4}


@pytest.mark.parametrize("contrast", ["supcon", "prototype"])
def test_first_step_leaves_the_classifier_last_step_the_projector(contrast: str) -> None:
    method = build("supcon_ce", contrast=contrast)
    apart = [*method.projector.parameters()]
    if contrast == "prototype":
        apart.append(method.prototypes)
    run(method, 0)
    assert size(method.classifier.parameters()) == 0
    assert size(apart) > 0
    run(method, STEPS)
    assert size(method.classifier.parameters()) > 0
    assert size(apart) == 0


def test_supcon_ce_with_alpha_one_is_supcon() -> None:
    both, alone = build("supcon_ce", curve="constant", level=1.0), build("supcon")
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if "classifier" not in k})
    torch.testing.assert_close(run(both)[0], run(alone)[0])


def test_supcon_ce_with_alpha_zero_is_the_cross_entropy_of_both_views() -> None:
    method = build("supcon_ce", curve="constant", level=0.0, class_balanced=False)
    views = cut(method)[0]
    with torch.no_grad():
        logits = method.classifier(method.encoder(torch.cat(views)).pooled)
    twice = LABELS.repeat(2)
    want = torch.nn.functional.cross_entropy(logits, twice, ignore_index=-1)
    torch.testing.assert_close(run(method)[0], want)
    balanced = build("supcon_ce", curve="constant", level=0.0)
    known = [twice == c for c in range(3)]
    log_p = logits.log_softmax(1)
    want = torch.stack([-log_p[k, c].mean() for c, k in enumerate(known)]).mean()
    torch.testing.assert_close(run(balanced)[0], want)


def test_chance_is_the_loss_of_equal_features() -> None:
    for contrast, exclude in (("supcon", False), ("prototype", False), ("prototype", True)):
        method = build("supcon_ce", contrast=contrast, exclude_own=exclude)
        with torch.no_grad():
            for p in (*method.projector.parameters(), *method.classifier.parameters()):
                p.zero_()  # all projections 0: every cosine is 0
        loss, metrics = run(method, 4)
        assert loss.item() == pytest.approx(metrics["chance"], rel=1e-5)


def test_prototypes_without_their_own_need_two_classes() -> None:
    with pytest.raises(HeadwaterError, match="leaves no other"):
        build("supcon_ce", classes=1, contrast="prototype", exclude_own=True)


# --- VICRegL


def vicregl_run(method: Any) -> tuple[Tensor, dict[str, Any]]:
    views, boxes = cut(method)
    return method(views, 0, boxes)


@pytest.mark.parametrize("locals_", [0, 2])
@pytest.mark.parametrize("backbone", ["vit", "test_efficientnet"])
def test_vicregl_works_on_both_families(backbone: str, locals_: int) -> None:
    method = build("vicregl", backbone, locals_=locals_)
    loss, metrics = vicregl_run(method)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in method.parameters())
    part = 0.75 * metrics["global"] + 0.25 * metrics["local"]
    torch.testing.assert_close(loss.detach(), part)


@pytest.mark.parametrize(("alpha", "still"), [(1.0, "local_projector"), (0.0, "projector")])
def test_vicregl_alpha_at_its_ends_silences_a_head(alpha: float, still: str) -> None:
    method = build("vicregl", alpha=alpha)
    vicregl_run(method)[0].backward()
    heads = {"projector": method.projector, "local_projector": method.local_projector}
    assert {n for n, h in heads.items() if size(h.parameters()) == 0} == {still}


def test_vicregl_gives_each_map_its_own_box(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("vicregl", locals_=2).eval()
    views, boxes = cut(method)
    seen: dict[str, Any] = {}

    def look(maps: Any, places: Any, *rest: Any) -> Tensor:
        seen.update(maps=maps, places=places)
        return torch.zeros(())

    monkeypatch.setattr(vicregl_loss, "maps", look)
    method(views, 0, boxes)
    for view, box, cells, place in zip(views, boxes, seen["maps"], seen["places"], strict=True):
        side = view.shape[-1] // 8
        torch.testing.assert_close(place, vicregl_loss.cells(box, (side, side)))
        with torch.no_grad():
            patch = method.encoder(view).patch  # (B, h, w, D), row by row as the cells
            alone = torch.stack([method.local_projector(p.flatten(0, 1)) for p in patch])
        torch.testing.assert_close(cells.detach(), alone, atol=1e-5, rtol=1e-4)
