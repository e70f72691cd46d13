"""Corruptions, cue conflict, filters and suppression: closed forms and planted encoders."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import numpy as np
import planted_subject
import pytest
import torch
from conftest import photo_tiles
from PIL import Image

from ssl_core.analyse import (
    _corrupt,
    _filters,
    _scenes,
    _stats,
    corruptions,
    suppression,
    texture,
)
from ssl_core.analyse._subject import Subject
from ssl_core.config import Analyse
from ssl_core.errors import HeadwaterError

RNG = np.random.default_rng
CFG = Analyse(images=24)
BY_KIND = pytest.mark.parametrize("name", _corrupt.CORRUPTIONS)


def photos(side: int, count: int = 12) -> torch.Tensor:
    tiles = [tile for _, tile in photo_tiles()][:: 117 // count][:count]
    small = [Image.fromarray(t).resize((side, side), Image.Resampling.BICUBIC) for t in tiles]
    return torch.from_numpy(np.stack([np.asarray(t) for t in small])).permute(0, 3, 1, 2)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.float() - b.float()).square().mean((1, 2, 3)).clamp_min(1e-3)
    return float((10 * torch.log10(255**2 / error)).mean())


# ---- corruptions -------------------------------------------------------------------------------


@BY_KIND
@pytest.mark.parametrize("side", [32, 96, 224])
def test_each_severity_is_worse_than_the_one_before(name: str, side: int) -> None:
    images = photos(side, 12 if side < 200 else 4)
    levels = []
    for severity in _corrupt.SEVERITIES:
        worse = _corrupt.apply(images, name, severity)
        assert worse.shape == images.shape
        assert worse.dtype == torch.uint8
        levels.append(psnr(images, worse))
    assert all(a > b for a, b in itertools.pairwise(levels)), levels


@BY_KIND
def test_corruptions_follow_the_seed_and_severity_zero_is_nothing(name: str) -> None:
    images = photos(32)
    first = _corrupt.apply(images, name, 3, seed=1)
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(first, _corrupt.apply(images, name, 3, seed=1))
    assert torch.equal(images, _corrupt.apply(images, name, 0))
    drawn = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic"}
    assert torch.equal(first, _corrupt.apply(images, name, 3, seed=2)) == (name not in drawn)


@BY_KIND
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_is_corrupted(name: str, channels: int) -> None:
    images = photos(32, 4)[:, :1].repeat(1, channels, 1, 1)
    worse = _corrupt.apply(images, name, 4)
    assert worse.shape == images.shape
    # Without colours there is nothing to saturate, and it is not counted.
    assert torch.equal(worse, images) == (name not in _corrupt.kinds(channels))
    assert name in _corrupt.kinds(3)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "motion_blur", "zoom_blur", "elastic", "pixelate", "contrast"]
)
def test_what_moves_or_averages_pixels_leaves_an_even_image_alone(name: str) -> None:
    even = torch.full((2, 3, 40, 40), 137, dtype=torch.uint8)
    assert (_corrupt.apply(even, name, 5).int() - even.int()).abs().max() <= 1


def test_corruptions_closed_forms() -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    noise = _corrupt.apply(grey, "gaussian_noise", 1).float() / 255
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02)
    shot = _corrupt.apply(grey, "shot_noise", 1).double() / 255
    assert float(shot.var()) == pytest.approx(128 / 255 / 60, rel=0.05)  # Poisson: mean = variance
    struck = _corrupt.apply(grey, "impulse_noise", 5)
    assert float((struck != 128).double().mean()) == pytest.approx(0.27, abs=0.01)
    assert set(struck.unique().tolist()) == {0, 128, 255}
    assert (_corrupt.apply(grey, "brightness", 2) == round((128 / 255 + 0.2) * 255)).all()
    images = photos(32)
    flat = _corrupt.apply(images, "contrast", 4).float()
    spread, before = flat.std((2, 3)), images.float().std((2, 3))
    clear = before > 30  # beside which rounding is small
    assert clear.any()
    torch.testing.assert_close(spread[clear], 0.1 * before[clear], atol=0, rtol=0.05)
    blocks = _corrupt.apply(images, "pixelate", 1)
    want = torch.nn.functional.avg_pool2d(images.float(), 2).round().repeat_interleave(2, 2)
    torch.testing.assert_close(blocks.float(), want.repeat_interleave(2, 3), atol=1, rtol=0)
    out = io.BytesIO()
    Image.fromarray(images[3].permute(1, 2, 0).numpy()).save(out, "JPEG", quality=13)
    stored = np.asarray(Image.open(out))
    np.testing.assert_array_equal(
        _corrupt.apply(images, "jpeg", 3)[3].permute(1, 2, 0).numpy(), stored
    )


def test_unknown_corruptions_are_refused() -> None:
    images = photos(32, 2)
    with pytest.raises(HeadwaterError, match=r"snow.*is not one of gaussian_noise"):
        _corrupt.apply(images, "snow", 1)
    with pytest.raises(HeadwaterError, match="severity 6"):
        _corrupt.apply(images, "fog", 6)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return planted_subject.subject(kind="cnn", count=160)


def found(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(r["slice"], r["metric"]): r for r in rows}


def test_without_corruption_nothing_is_lost_and_with_all_gone_chance_is_left(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corrupt, "apply", lambda images, *_: images.clone())
    rows = found(corruptions.run(subject, CFG).rows)
    for probe in corruptions.PROBES:
        assert rows["all", f"{probe}_relative_drop"]["value"] == pytest.approx(0)
    clean = corruptions.named(subject, subject.rows.features[subject.draw(24, labelled=True)])
    right = clean["linear"] == subject.rows.labels[subject.draw(24, labelled=True)]
    assert rows["all", "linear_clean_accuracy"]["value"] == pytest.approx(right.mean())
    part = right[1::4]  # the second kind looks at the second quarter
    kind = list(_corrupt.CORRUPTIONS)[1]
    assert rows[f"{kind}/severity:4", "linear_accuracy"]["value"] == pytest.approx(part.mean())
    monkeypatch.setattr(_corrupt, "apply", lambda images, *_: torch.zeros_like(images))
    rows = found(corruptions.run(subject, CFG).rows)
    mean = rows["all", "linear_mean_corruption_accuracy"]
    assert mean["value"] == pytest.approx(1 / 3, abs=0.15)
    assert mean["n"] == 24


def test_the_drop_is_taken_on_equal_images() -> None:
    clean = np.array([1.0, 1, 0, 1])
    right = np.full((4, 2, 1), np.nan)
    right[:2, 0, 0] = 1, 0  # the first kind looked at two images, the second at the others
    right[2:, 1, 0] = 0, 1
    value, low, high = corruptions.Table(clean, right).drop(np.array(list("abcd")))
    assert value == pytest.approx(1 - 2 / 3)
    assert low <= value <= high


# ---- shares ------------------------------------------------------------------------------------


def test_the_interval_of_a_ratio_is_that_of_a_binomial() -> None:
    right = RNG(0).random(400) < 0.3
    row = _stats.share("m", right, "all")
    assert row["value"] == pytest.approx(right.mean())
    width = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert row["high"] - row["low"] == pytest.approx(2 * width, rel=0.25)
    among = np.arange(400) < 100
    assert _stats.share("m", right, "all", among)["value"] == pytest.approx(right[:100].mean())
    assert np.isnan(_stats.share("m", right, "all", np.zeros(400))["value"])


# ---- shape and texture -------------------------------------------------------------------------


def test_bias_of_known_answers() -> None:
    pairs = texture.conflicting()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == 30
    for answers, want in ((pairs[:, 0], 1), (pairs[:, 1], 0)):
        bias, either = texture.bias(answers, pairs)
        assert (bias["value"], either["value"]) == (want, 1)
    bias, either = texture.bias(RNG(0).integers(0, 6, len(pairs)), pairs)
    assert bias["low"] < 0.5 < bias["high"]
    assert either["value"] == pytest.approx(1 / 3, abs=0.08)


@pytest.mark.parametrize(("place", "want"), [(0, 1.0), (1, 0.0)])
def test_an_encoder_of_one_cue_has_that_bias(
    place: int, want: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scenes, "cues", lambda pairs, *_: torch.from_numpy(pairs))
    stub = SimpleNamespace(
        seed=0,
        source=SimpleNamespace(side=32, channels=3),
        features=lambda pairs: np.eye(6, dtype=np.float32)[pairs[:, place].numpy()],
    )
    rows = found(texture.conflict(stub))
    assert rows["cue_conflict", "shape_bias"]["value"] == want
    own, other = ("shape", "texture") if place == 0 else ("texture", "shape")
    assert rows["free_cues", f"{own}_accuracy"]["value"] == 1
    assert rows["free_cues", f"{other}_accuracy"]["value"] < 0.35


@pytest.mark.parametrize("side", [32, 96])
def test_silhouettes_differ_and_lie_inside(side: int) -> None:
    masks = [_scenes.silhouette(n, side, (0.5, 0.5), 0.4, 0.0) for n in _scenes.SHAPES]
    for i, mask in enumerate(masks):
        assert 0.05 < mask.mean() < 0.65
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        for other in masks[:i]:
            assert (mask & other).sum() / (mask | other).sum() < 0.9
    disc = masks[0].mean()
    assert disc == pytest.approx(np.pi * (0.9 * 0.4) ** 2, rel=0.05)


def test_textures_are_about_half_dark_and_known_by_their_spectrum() -> None:
    for name in _scenes.TEXTURES:
        dark = [_scenes.texture(name, 72, RNG(i)).mean() for i in range(4)]
        assert np.mean(dark) == pytest.approx(0.45, abs=0.1)
    rows = np.abs(np.fft.fft2(_scenes.texture("rows", 72, RNG(0)) - 0.5))
    assert np.unravel_index(rows.argmax(), rows.shape) in ((9, 0), (63, 0))  # period: a ninth


# ---- changed images ----------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [2, 4])
def test_shuffled_tiles_are_the_same_tiles(tiles: int) -> None:
    images = photos(32)
    moved = _filters.shuffled(images, tiles, seed=0)
    size = 32 // tiles

    def cut(image: torch.Tensor) -> list[bytes]:
        return sorted(
            image[:, y : y + size, x : x + size].contiguous().numpy().tobytes()
            for y in range(0, 32, size)
            for x in range(0, 32, size)
        )

    for before, after in zip(images, moved, strict=True):
        assert cut(before) == cut(after)
    assert not torch.equal(images, moved)


def test_filters_part_an_image() -> None:
    images = photos(32)
    low, high = (f(images, 0.2).double() for f in (_filters.low_passed, _filters.high_passed))
    whole = images.double() + images.double().mean((2, 3), keepdim=True)
    inside = (high > 0) & (high < 255)  # where nothing was cut off
    torch.testing.assert_close((low + high)[inside], whole[inside], atol=1.1, rtol=0)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    checks = (255 * ((x + y) % 2)).to(torch.uint8).expand(1, 1, 32, 32)
    assert (_filters.low_passed(checks, 0.2).int() - 127).abs().max() <= 1
    even = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    assert torch.equal(_filters.low_passed(even, 0.1), even)
    assert torch.equal(_filters.high_passed(even, 0.1), even)


def test_noise_keeps_to_its_band() -> None:
    grey = torch.full((3, 1, 64, 64), 128, dtype=torch.uint8)
    noisy = _filters.noisy(grey, (0.3, 0.6), 0.1, seed=0)
    noise = noisy.double() - 128
    assert float(noise.std()) == pytest.approx(25.5, rel=0.02)
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    axis = torch.fft.fftfreq(64) * 2
    radius = torch.hypot(axis[:, None], axis[None, :])
    inside = (radius >= 0.3) & (radius < 0.6)
    assert float(power[inside].sum() / power.sum()) > 0.99


# ---- suppression -------------------------------------------------------------------------------


def test_scores_and_what_is_kept() -> None:
    assert suppression.score(0.1, 10) == pytest.approx(0)
    assert suppression.score(1, 10) == 1
    alone, together = np.arange(200) < 180, np.arange(200) < 60
    value, low, high = suppression.kept(alone, together, 10)
    assert value == pytest.approx(suppression.score(0.3, 10) / suppression.score(0.9, 10))
    assert low < value < high
    assert np.isnan(suppression.kept(alone & False, together, 10)).all()


def test_objects_lie_in_company_where_they_lay_alone() -> None:
    drawn = suppression.factors(12, RNG(0))
    digit, other, both = (
        suppression.scenes(drawn, parts, 32, 3, 0).int() for parts in suppression.SCENES.values()
    )
    ground = both[:, :1, :1, :1]  # the corner
    inked, covered = (digit != ground).any(1), (other != ground).any(1)
    assert not (inked & covered).any()
    assert torch.equal(both.permute(0, 2, 3, 1)[inked], digit.permute(0, 2, 3, 1)[inked])
    assert torch.equal(both.permute(0, 2, 3, 1)[covered], other.permute(0, 2, 3, 1)[covered])
    assert torch.equal(both[:, 0][~(inked | covered)], digit[:, 0][~(inked | covered)])


def test_an_encoder_that_drops_the_silhouette_in_company_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scenes(drawn: dict, parts: tuple, *_: object) -> dict:
        names = ("digit",) if "digit" in parts else ("shape", "colour")
        return {name: drawn[name] for name in names}

    def features(seen: dict) -> np.ndarray:
        return np.concatenate([np.eye(10, dtype=np.float32)[v] for v in seen.values()], 1)

    monkeypatch.setattr(suppression, "scenes", scenes)
    stub = SimpleNamespace(seed=0, source=SimpleNamespace(side=32, channels=3), features=features)
    right = suppression._probe(stub, suppression.factors(suppression.IMAGES, RNG(0)))
    rows = found(suppression._summary(right))
    assert rows["together", "digit_kept"]["value"] == pytest.approx(1)
    assert abs(rows["together", "shape_kept"]["value"]) < 0.15
    assert rows["together", "digit_share"]["value"] > 0.85
