"""Temperatures, teachers' momenta, and the views of the papers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from ssl_core import job, models, plugins
from ssl_core.augment import Augmenter
from ssl_core.config import Config
from ssl_core.errors import HeadwaterError
from ssl_core.methods import _teacher
from ssl_core.methods._temperature import Schedule, at, by_classes
from ssl_core.types import Task

TASK = Task(32, steps=400, classes=10)


def test_temperature_fixed_and_linear_meet_their_ends() -> None:
    assert at(0.2, 17, TASK) == 0.2
    line = Schedule(kind="linear", start=0.1, end=0.4, share=0.5)
    assert at(line, 0, TASK) == pytest.approx(0.1)
    assert at(line, 100, TASK) == pytest.approx(0.25)
    assert [at(line, k, TASK) for k in (200, 300, 400)] == pytest.approx([0.4] * 3)


def test_temperature_cosine_has_the_period_and_mean_of_the_paper() -> None:
    """arXiv 2303.13664: t- + (t+ - t-)(1 + cos(2 pi t / T)) / 2, from t+ = 1 down to t- = 0.1."""
    wave = Schedule(kind="cosine", start=1.0, end=0.1, share=0.25)  # T = 100 steps
    for step in (0, 13, 50, 77, 100, 313):
        want = 0.1 + 0.9 * (1 + math.cos(2 * math.pi * step / 100)) / 2
        assert at(wave, step, TASK) == pytest.approx(want)
    mean = sum(at(wave, k, TASK) for k in range(400)) / 400
    assert mean == pytest.approx(0.55)


def test_temperature_by_classes_falls_with_their_number() -> None:
    rule = Schedule(kind="classes", start=0.1, end=0.5)
    values = [at(rule, 0, Task(32, 10, c)) for c in (2, 10, 100, 1000, 10**6)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[3], values[4]) == pytest.approx((0.5, 0.1, 0.1))
    # Straight in log-log: equal factors of classes, equal factors of temperature.
    a, b, c = (by_classes(n, 0.1, 0.5) for n in (4, 40, 400))
    assert a / b == pytest.approx(b / c)
    with pytest.raises(HeadwaterError, match="needs labels"):
        at(rule, 0, Task(32, 10, 0))
    with pytest.raises(ValidationError):
        Schedule(kind="cosine", start=-1)


def test_temperature_is_an_option_of_the_contrastive_methods() -> None:
    for name in ("simclr", "moco_v3", "supcon", "rince"):
        cfg = plugins.load("methods", name).Config(
            temperature={"kind": "cosine", "start": 0.5, "end": 0.1}
        )
        assert at(cfg.temperature, 0, TASK) == pytest.approx(0.5)


def test_momentum_follows_the_length_of_training() -> None:
    values = [_teacher.first_momentum(None, n) for n in (1, 100, 400, 1000, 5000, 10**6)]
    assert values == pytest.approx([0.9, 0.9, 0.975, 0.99, 0.996, 0.996])
    assert _teacher.first_momentum(None, 1000, 0.05) == pytest.approx(0.98)
    assert _teacher.first_momentum(0.7, 10**6) == 0.7


# Section 4 of the reference: global scale, jitter, blur and solarise of both views, local scale.
BYOL = (0.4, 0.4, 0.2, 0.1)
PAPERS: dict[str, tuple[Any, ...]] = {
    "simclr": ((0.08, 1), (0.8, 0.8, 0.8, 0.2), (0.5, 0.5), (0, 0), None),
    "byol": ((0.08, 1), BYOL, (1.0, 0.1), (0, 0.2), None),
    "moco_v3": ((0.08, 1), BYOL, (1.0, 0.1), (0, 0.2), None),
    "simsiam": ((0.2, 1), (0.4, 0.4, 0.4, 0.1), (0.5, 0.5), (0, 0), None),
    "vicreg": ((0.08, 1), BYOL, (1.0, 0.1), (0, 0.2), None),
    "vicregl": ((0.4, 1), BYOL, (1.0, 0.1), (0, 0.2), (6, (0.08, 0.4))),
    "dino": ((0.4, 1), BYOL, (1.0, 0.1), (0, 0.2), (8, (0.05, 0.4))),
    "ibot": ((0.25, 1), BYOL, (1.0, 0.1), (0, 0.2), (10, (0.05, 0.25))),
    "dinov2": ((0.32, 1), BYOL, (1.0, 0.1), (0, 0.2), (8, (0.05, 0.32))),
    "mae": ((0.2, 1), (0, 0, 0, 0), (0,), (0,), None),
    "simmim": ((0.67, 1), (0, 0, 0, 0), (0,), (0,), None),
}
VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("name", PAPERS)
def test_views_of_the_paper(name: str) -> None:
    scale, jitter, blur, solarise, local = PAPERS[name]
    plugin = plugins.load("methods", name)
    small = {"hidden": 16, "out": 16, "prototypes": 8, "bottleneck": 8, "decoder_dim": 16}
    small |= {"decoder_depth": 1, "decoder_heads": 2, "local_hidden": 16, "local_out": 16}
    fields = plugin.Config.model_fields
    cfg = plugin.Config(**(plugin.PAPER | {k: v for k, v in small.items() if k in fields}))
    encoder = models.create("vit_tiny_patch16_224", VIT)
    views = plugin.Method(encoder, cfg, Task(64, 10, 3)).views
    whole = views[: len(blur)]
    assert [v.scale for v in whole] == [scale] * len(blur)
    assert [v.jitter for v in whole] == [jitter] * len(blur)
    assert tuple(v.blur for v in whole) == blur
    assert tuple(v.solarise for v in whole) == solarise
    assert [(v.count, v.scale) for v in views[len(blur) :]] == ([] if local is None else [local])
    if any(jitter):
        assert {(v.jitter_p, v.grey, v.flip) for v in views} == {(0.8, 0.2, 0.5)}


def test_boxes_say_where_the_view_was_cut() -> None:
    """A view of a picture of its own coordinates shows the box."""
    from ssl_core.types import View

    line = (torch.arange(64) + 0.5) / 64
    picture = torch.stack([line.view(-1, 1).expand(64, 64), line.expand(64, 64)])
    images = (picture * 255).byte().unsqueeze(0).repeat(16, 1, 1, 1)  # (16, 2, 64, 64)
    augment = Augmenter([View(16, (0.2, 0.6))], (0.0, 0.0), (1.0, 1.0))
    (view,), (box,) = augment.with_boxes(images, torch.Generator().manual_seed(0))
    top, left, height, width, mirrored = box.unbind(1)
    assert 0 < mirrored.mean() < 1
    torch.testing.assert_close(view[:, 0].mean((1, 2)), top + height / 2, atol=0.01, rtol=0)
    torch.testing.assert_close(view[:, 1].mean((1, 2)), left + width / 2, atol=0.01, rtol=0)
    rises = view[:, 1, :, -1].mean(1) > view[:, 1, :, 0].mean(1)
    assert torch.equal(rises, mirrored == 0)


def test_the_readme_shows_options_that_exist() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    block = text.split("## Pretraining")[1].split("```yaml")[1].split("```")[0]
    cfg = Config.model_validate(yaml.safe_load(block))
    assert at(job.options(cfg.pretrain).temperature, 0, TASK) == pytest.approx(1.0)
    p = cfg.pretrain
    encoder = models.create("vit_tiny_patch16_224", p.backbone_args)
    assert (encoder.channels, encoder.n_prefix) == (5, 5)  # the class token and four registers
    named = set(re.findall(r"`(\w+)`", text.split("| family |")[1].split("Each loss")[0]))
    assert named == set(plugins.names("methods"))
