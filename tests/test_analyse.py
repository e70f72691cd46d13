"""Every analysis on a ViT and a CNN: one shape of finding, and an encoder that stays as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import planted_subject
import pytest
import torch
from PIL import Image

from ssl_core import embed, plugins
from ssl_core.analyse._subject import NOT_JUDGED, Finding, Masks, Subject
from ssl_core.config import Analyse
from ssl_core.errors import HeadwaterError

CFG = Analyse(images=24, steps=2)


@dataclass(frozen=True)
class Needs:
    """What an analysis cannot do without."""

    attention: bool = False
    masks: bool = False
    labels: bool = False


TABLE = {
    "attention": Needs(attention=True),
    "cka": Needs(),
    "correspondence": Needs(),
    "corruptions": Needs(labels=True),
    "discovery": Needs(masks=True),
    "fine_tune": Needs(labels=True),
    "fourier": Needs(),
    "invariance": Needs(),
    "layerwise": Needs(labels=True),
    "localisation": Needs(masks=True),
    "segmentation": Needs(masks=True),
    "supcon_ce": Needs(labels=True),
    "suppression": Needs(),
    "texture": Needs(),
}
BY_NAME = pytest.mark.parametrize("name", TABLE)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return planted_subject.subject(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return planted_subject.subject(tmp_path_factory.mktemp("masks"), "cnn")


@pytest.fixture(scope="module")
def findings(vit: Subject) -> dict[str, Finding]:
    """One finding of each analysis on the ViT."""
    return {name: found(name, vit) for name in plugins.names("analyse")}


def found(name: str, subject: Subject) -> Finding:
    result = plugins.load("analyse", name).run(subject, CFG)
    assert isinstance(result, Finding)
    return result


def test_every_analysis_has_a_row_here() -> None:
    assert set(plugins.names("analyse")) == set(TABLE)


@BY_NAME
def test_findings_of_a_vit_have_one_shape(name: str, findings: dict[str, Finding]) -> None:
    check(findings[name])


@BY_NAME
def test_findings_of_a_cnn_have_that_shape_or_say_why_not(name: str, cnn: Subject) -> None:
    finding = found(name, cnn)
    if not TABLE[name].attention:
        check(finding)
    else:
        assert not finding.rows
        assert "resnet10t" in finding.missing


def check(finding: Finding) -> None:
    assert finding.rows
    assert not finding.missing
    for row in finding.rows:
        assert list(row) == ["slice", "metric", "value", "low", "high", "n"]
        assert all(type(row[k]) is float for k in ("value", "low", "high"))
        assert type(row["n"]) is int
        assert not row["low"] > row["high"]
    assert len({(r["slice"], r["metric"]) for r in finding.rows}) == len(finding.rows)
    assert sum(np.isfinite(r["value"]) for r in finding.rows) > len(finding.rows) / 2
    assert finding.pictures
    for data in finding.pictures.values():
        assert data.startswith(b"\x89PNG")
        assert len(data) < 200_000


@BY_NAME
def test_a_look_changes_nothing_and_is_repeatable(
    name: str, vit: Subject, findings: dict[str, Finding]
) -> None:
    net = vit.encoder
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fused = [block.attn.fused_attn for block in net.model.blocks]
    first, again = findings[name], found(name, vit)
    np.testing.assert_equal(first.rows, again.rows)
    assert first.pictures == again.pictures
    assert [block.attn.fused_attn for block in net.model.blocks] == fused
    assert not net.training
    for part in net.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    for key, value in net.state_dict().items():
        assert torch.equal(before[key], value)


@BY_NAME
def test_what_is_missing_is_said(name: str, vit: Subject) -> None:
    rows = replace(vit.rows, labels=np.full(len(vit.rows), -1))
    finding = found(name, replace(vit, rows=rows, masks=None))
    needs = TABLE[name]
    assert bool(finding.missing) == (needs.masks or needs.labels)
    assert bool(finding.rows) != bool(finding.missing)


# ---- the subject -------------------------------------------------------------------------------


def test_the_mean_of_a_row_is_over_images_and_its_interval_over_groups(vit: Subject) -> None:
    rows = vit.draw(20)
    values = np.arange(20.0)
    row = vit.average("m", values, rows, "layer:1")
    assert (row["value"], row["n"], row["slice"]) == (9.5, 20, "layer:1")
    assert row["low"] < 9.5 < row["high"]
    values[:10] = np.nan
    row = vit.average("m", values, rows)
    assert (row["value"], row["n"]) == (14.5, 10)


def test_the_head_is_the_probe_of_the_training_split(vit: Subject) -> None:
    from ssl_core.evaluate import linear

    want = linear.fit(embed.rows(vit.rows, vit.is_train))
    np.testing.assert_array_equal(vit.head.weight, want.weight)


def test_masks_are_fitted_as_the_reader_fits_images(tmp_path: Path) -> None:
    Image.fromarray(np.ones((10, 20), np.uint8)).save(tmp_path / "wide.png")
    masks = Masks((tmp_path / "wide.png", None))
    assert masks.rows().tolist() == [0]
    mask = masks.take(np.array([0]), 40)[0]
    assert (mask[10:30] == 1).all()
    assert (mask[:10] == NOT_JUDGED).all()
    assert (mask[30:] == NOT_JUDGED).all()


def test_a_mask_in_colour_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(HeadwaterError, match=r"colour\.png.*mode RGB"):
        Masks((tmp_path / "colour.png",)).take(np.array([0]), 4)
