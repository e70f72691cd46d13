"""Augmentation per operation against torchvision, per sample; and its random choices."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom, chi2_contingency, kstest
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from ssl_core import augment
from ssl_core.augment import Augmenter
from ssl_core.types import View

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
ALL = View(
    24, (0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey=0.2, blur=0.5, solarise=0.2
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int = 6, size: tuple[int, int] = (40, 32), channels: int = 3) -> Tensor:
    """Smooth random images in [0, 1]."""
    coarse = torch.rand(n, channels, 5, 5, generator=seeded())
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


def noise(n: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Random grey levels, uint8: the hardest case for a resampling filter."""
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=seeded())


def whole(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return torch.tensor([[0.0, 0.0, height, width]]).expand(len(x), 4)


def no(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.bool)


# --- operations


WAYS = {"sample by sample": augment._cut, "dense": augment._cut_dense}
LEVEL = 1 / 255
BOXES = [(0, 0, 20, 30), (5, 7, 30, 20), (12, 3, 28, 29), (3, 9, 17, 12)]


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("size", [8, 13, 32, 50])
def test_resize_equals_torchvision(size: int, way: str) -> None:
    """In float to rounding errors; the uint8 kernel to half a level and its weights' precision."""
    x = noise(3, (40, 32))
    got = WAYS[way](x, whole(x), size, no(x))
    want = tv.resize(x.float() / 255, [size, size], antialias=True)
    torch.testing.assert_close(got, want, atol=1e-5 if way == "dense" else 1.01 * LEVEL, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("way", list(WAYS))
def test_crop_equals_torchvision(way: str, channels: int) -> None:
    """Per sample its own box; no pixel beyond the box takes part."""
    x = noise(4, (40, 32), channels)
    got = WAYS[way](x, torch.tensor(BOXES).float(), 16, no(x))
    for i, box in enumerate(BOXES):
        want = tv.resized_crop(x[i].float() / 255, *box, [16, 16], antialias=True)
        tolerance = 1e-5 if way == "dense" else 1.01 * LEVEL
        torch.testing.assert_close(got[i], want, atol=tolerance, rtol=0)


def test_antialiasing_equals_pil_to_a_grey_level() -> None:
    """Crop and resize of noise, down to a fifth and up to double; without antialiasing: 80."""
    x = noise(6, (100, 90))
    boxes = [(0, 0, 100, 90), (3, 5, 80, 70), (40, 30, 40, 44), (11, 2, 64, 85), (9, 9, 10, 10)]
    got = augment.crop_resize(x, torch.tensor([*boxes, (0, 0, 20, 90)]).float(), 20, no(x))
    aliased = []
    for i, (top, left, height, width) in enumerate([*boxes, (0, 0, 20, 90)]):
        image = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        box = (left, top, left + width, top + height)
        want = np.asarray(image.crop(box).resize((20, 20), Image.Resampling.BILINEAR), np.float32)
        levels = got[i].permute(1, 2, 0).numpy() * 255
        assert np.abs(levels - want).max() <= 1.01
        assert np.abs(levels - want).mean() < 0.05
        plain = tv.resized_crop(x[i].float(), top, left, height, width, [20, 20], antialias=False)
        aliased.append(float((plain.permute(1, 2, 0) - torch.from_numpy(want)).abs().max()))
    assert max(aliased) > 80


@pytest.mark.parametrize("factors", [[0.6, 1.0, 1.4], [0.0, 0.3, 2.0]])
def test_brightness_contrast_saturation_equal_torchvision(factors: list[float]) -> None:
    x, f = photos(3), torch.tensor(factors)
    zero = torch.zeros(3)
    cases = [
        (augment.brightness_(x.clone(), f), tv.adjust_brightness),
        (augment.contrast_(x.clone(), f), tv.adjust_contrast),
        (augment.colour(x, f, zero, no(x)), tv.adjust_saturation),
    ]
    for got, oracle in cases:
        want = torch.stack([oracle(x[i], factors[i]) for i in range(3)])
        torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


def test_grey_equals_torchvision() -> None:
    x, one = photos(3), torch.ones(3)
    grey = torch.tensor([True, False, True])
    got = augment.colour(x, one, 0 * one, grey)
    want = torch.where(grey.view(-1, 1, 1, 1), tv.rgb_to_grayscale(x, 3), x)
    torch.testing.assert_close(got, want)


def test_hue_turns_as_hsv_and_keeps_luma() -> None:
    """Not torchvision's formula: same direction, same period, luma exact, hue within 0.06 turns."""
    base = torch.tensor([0.6, 0.4, 0.35]).view(1, 3, 1, 1)
    x = torch.cat([base, base.roll(1, 1), base.roll(2, 1)]).expand(-1, -1, 4, 4)
    weights = torch.tensor([0.299, 0.587, 0.114])
    for turn in (-0.1, 0.05, 0.1):
        got = augment.colour(x, torch.ones(3), torch.full((3,), turn), no(x))
        torch.testing.assert_close(
            torch.einsum("bchw,c->bhw", got, weights), torch.einsum("bchw,c->bhw", x, weights)
        )
        want = tv.adjust_hue(x, turn)
        difference = (hsv_hue(got) - hsv_hue(want) + 0.5) % 1 - 0.5
        assert difference.abs().max() < 0.06
    third = augment.colour_matrix(torch.ones(1), torch.tensor([1 / 3]), no(x[:1]))[0]
    torch.testing.assert_close(third @ third @ third, torch.eye(3), atol=1e-5, rtol=0)


def hsv_hue(x: Tensor) -> Tensor:
    import colorsys

    return torch.tensor([colorsys.rgb_to_hsv(*p[:, 0, 0].tolist())[0] for p in x])


@pytest.mark.parametrize("size", [32, 50, 96])
def test_blur_equals_torchvision(size: int) -> None:
    x = torch.rand(4, 3, size, size, generator=seeded())
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0])
    fired = torch.tensor([True, True, False, True])
    taps = augment.kernel_size(size)
    assert taps % 2 == 1
    kernel = torch.stack(
        [gaussian(taps, s if f else 1e-3) for s, f in zip(sigma, fired, strict=True)]
    )
    ways = [augment.blur(x.clone(), sigma, fired), augment._blur_dense(x, kernel)]
    for i in range(4):
        want = tv.gaussian_blur(x[i], [taps, taps], [sigma[i].item()]) if fired[i] else x[i]
        for got in ways:
            torch.testing.assert_close(got[i], want, atol=1e-5, rtol=0)


def gaussian(taps: int, sigma: float | Tensor) -> Tensor:
    weights = torch.exp(-0.5 * ((torch.arange(taps) - taps // 2) / sigma) ** 2)
    return weights / weights.sum()


def test_cut_tails_of_the_blur_weigh_less_than_a_tenth_of_a_level() -> None:
    """At 224 pixels SimCLR's kernel has 23 taps; those beyond 4 sigma are left out."""
    x = noise(3, (224, 224)).float() / 255
    x[0] = (x[0] > 0.5).float()
    sigma, all_ = torch.tensor([2.0, 1.2, 0.1]), torch.ones(3, dtype=torch.bool)
    got = augment.blur(x.clone(), sigma, all_, most=2.0)
    for i in range(3):
        want = tv.gaussian_blur(x[i], [23, 23], [sigma[i].item()])
        torch.testing.assert_close(got[i], want, atol=0.1 * LEVEL, rtol=0)


def test_solarise_equals_torchvision_and_undoes_itself() -> None:
    x = photos(3)
    fired = torch.tensor([True, False, True])
    got = augment.solarise(x.clone(), fired)
    want = torch.where(fired.view(-1, 1, 1, 1), tv.solarize(x, 0.5), x)
    torch.testing.assert_close(got, want)
    bright = 0.5 + photos(3) / 2
    inverted = augment.solarise(bright.clone(), ~no(x))
    assert (inverted <= 0.5).all()
    torch.testing.assert_close(1 - inverted, bright)


# --- random choices


def test_every_operation_fires_as_often_as_asked() -> None:
    n = 5000
    chosen = augment.draw(ALL, n, (64, 64), seeded(1))
    jittered = (chosen.factors[:, 0] != 1).sum().item()
    counts = {
        "flip": (chosen.flip.sum().item(), ALL.flip),
        "jitter": (jittered, ALL.jitter_p),
        "grey": (chosen.grey.sum().item(), ALL.grey),
        "blur": (chosen.blur.sum().item(), ALL.blur),
        "solarise": (chosen.solarise.sum().item(), ALL.solarise),
    }
    for name, (count, p) in counts.items():
        low, high = binom.interval(0.999, n, p)
        assert low <= count <= high, f"{name} fired {count} of {n}, expected {p}"


def test_choices_are_independent_of_each_other() -> None:
    chosen = augment.draw(ALL, 5000, (64, 64), seeded(2))
    columns = [
        chosen.flip,
        chosen.grey,
        chosen.blur,
        chosen.solarise,
        chosen.sigma,
        chosen.box[:, 0],
    ]
    values = torch.stack([c.double() for c in columns])
    off = torch.corrcoef(values) - torch.eye(len(columns))
    assert off.abs().max() < 0.06  # 4 standard errors


def test_jitter_factors_are_uniform_in_their_range() -> None:
    view = View(8, (1, 1), jitter=(0.4, 0.3, 0.2, 0.1), jitter_p=1.0)
    factors = augment.draw(view, 4000, (8, 8), seeded()).factors.double().numpy()
    for i, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)]):
        assert kstest(factors[:, i], "uniform", (low, high - low)).pvalue > 1e-3
    strong = View(8, (1, 1), jitter=(1.5, 0, 0, 0.5), jitter_p=1.0)
    wide = augment.draw(strong, 4000, (8, 8), seeded()).factors
    assert wide[:, 0].min() >= 0  # torchvision's max(0, 1 - b)
    assert wide[:, 3].min() < -0.45


@pytest.mark.parametrize("size", [(640, 640), (480, 960)])
def test_crop_area_and_aspect(size: tuple[int, int]) -> None:
    """On a large image, where rounding to pixels is below the tests' resolution."""
    view = View(16, (0.1, 0.4))
    box = augment.draw(view, 5000, size, seeded()).box.double()
    assert torch.equal(box, box.round())
    top, left, height, width = box.T
    share = height * width / (size[0] * size[1])
    aspect = (width / height).log().numpy()
    assert (box >= 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()
    assert kstest(share.numpy(), "uniform", (0.1, 0.3)).pvalue > 1e-3
    log_ratios = (math.log(3 / 4), 2 * math.log(4 / 3))
    assert kstest(aspect, "uniform", log_ratios).pvalue > 1e-3
    for place, free in ((top, size[0] - height), (left, size[1] - width)):
        assert kstest(((place + 0.5) / (free + 1)).numpy(), "uniform").pvalue > 1e-3


def test_boxes_of_small_images_are_distributed_as_torchvisions() -> None:
    """Rounding matters here: compare with torchvision's own draws."""
    view = View(16, (0.2, 1.0))
    ours = augment.draw(view, 4000, (12, 16), seeded()).box
    torch.manual_seed(0)
    image = torch.zeros(1, 12, 16)
    draws = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    for i in range(4):
        table = np.zeros((2, 17))
        for row, values in enumerate((ours[:, i].tolist(), [d[i] for d in draws])):
            np.add.at(table[row], np.asarray(values, int), 1)
        table = table[:, table.sum(0) >= 20]
        assert chi2_contingency(table).pvalue > 1e-3


def test_impossible_crop_falls_back_to_the_centre() -> None:
    box = augment.draw(View(16, (0.9, 1.0)), 50, (20, 200), seeded()).box
    want = torch.tensor([0.0, (200 - 27) // 2, 20.0, 27.0]).expand(50, 4)
    torch.testing.assert_close(box, want)


# --- the whole


def test_same_generator_same_bytes() -> None:
    images = (photos() * 255).byte()
    augmenter = Augmenter([ALL], MEAN, STD)
    one, two = augmenter(images, seeded(3))[0], augmenter(images, seeded(3))[0]
    assert torch.equal(one, two)
    assert not torch.equal(one, augmenter(images, seeded(4))[0])
    torch.manual_seed(1)  # the global generator plays no part
    assert torch.equal(one, augmenter(images, seeded(3))[0])


def test_views_come_in_order_with_their_own_recipe() -> None:
    images = (photos() * 255).byte()
    kept = images.clone()
    recipes = [View(24, (1, 1), flip=0.0, ratio=(0.8, 0.8)), View(16, (0.2, 0.5), count=2)]
    views = Augmenter(recipes, MEAN, STD)(images, seeded())
    assert [tuple(v.shape) for v in views] == [(6, 3, 24, 24), (6, 3, 16, 16), (6, 3, 16, 16)]
    assert all(v.dtype == torch.float32 and v.is_contiguous() for v in views)
    assert not torch.equal(views[1], views[2])
    assert torch.equal(images, kept)
    # The first recipe is deterministic: the whole 40x32 image, resized and normalised.
    want = tv.resize(images, [24, 24], antialias=True).float() / 255
    torch.testing.assert_close(
        views[0], tv.normalize(want, list(MEAN), list(STD)), atol=1e-4, rtol=0
    )


def test_bytes_depend_neither_on_threads_nor_on_memory_layout() -> None:
    """So that augmenting in background threads, or resuming on more cores, changes nothing."""
    images = noise(40, (80, 70))
    hard = View(
        64, (0.1, 1), 2, jitter=(1, 1, 1, 0.5), jitter_p=1, grey=0.1, blur=0.5, solarise=0.5
    )
    augmenter, threads = Augmenter([hard], MEAN, STD), torch.get_num_threads()
    want = augmenter(images, seeded())
    last = images.contiguous(memory_format=torch.channels_last)
    try:
        for number, given in ((1, last), (2, images), (3, last)):
            torch.set_num_threads(number)
            got = augmenter(given, seeded())
            assert torch.get_num_threads() == number
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_strength_zero_is_the_identity() -> None:
    x = noise(4, (24, 24))
    weak = View(24, (1, 1), ratio=(1, 1), flip=0.0, jitter_p=1.0)
    chosen = augment.draw(weak, 4, (24, 24), seeded())
    x = x.float() / 255
    torch.testing.assert_close(augment.apply((x * 255).byte(), weak, chosen), x)
    matrix = augment.colour_matrix(torch.ones(4), torch.zeros(4), no(x))
    assert torch.equal(matrix, torch.eye(3).expand(4, 3, 3))
    assert torch.equal(augment.blur(x, torch.ones(4), no(x)), x)


def test_output_stays_in_range() -> None:
    hard = View(20, (0.1, 1), jitter=(1, 1, 1, 0.5), jitter_p=1, grey=0.1, blur=1, solarise=0.5)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    out = Augmenter([hard], (0.0,) * 3, (1.0,) * 3)(images, seeded())[0]
    assert out.isfinite().all()
    assert out.min() > -1e-5
    assert out.max() < 1 + 1e-5


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channel_counts(channels: int) -> None:
    images = (photos(channels=channels) * 255).byte()
    out = Augmenter([ALL], (0.5,) * channels, (0.2,) * channels)(images, seeded())[0]
    assert out.shape == (6, channels, 24, 24)
    assert out.isfinite().all()


def test_choices_survive_the_one_copy_to_a_gpu() -> None:
    view = View(16, (0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=0.5, solarise=0.5, grey=0.5)
    generator = torch.Generator().manual_seed(0)
    drawn = [augment.draw(view, 8, (300, 257), generator) for _ in range(3)]
    for ours, theirs in zip(augment.unpacked(augment.packed(drawn), drawn[0]), drawn, strict=True):
        for field in dataclasses.fields(augment.Draws):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
