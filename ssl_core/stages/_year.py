"""The simulated year's deployment: from a week's number to images and their true labels.

Everything is a pure function of the pictures, the seed and the week. All scenarios draw the same
pictures in the same poses, so a week of one scenario and the same week of "none" differ by the
scenario's change alone (but for those that change how often a class comes).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..errors import HeadwaterError
from ..repair._common import fraction

Names = NDArray[np.str_]
Change = Callable[[Image.Image, float], Image.Image]
TURN, SHIFT = 5.0, 0.04  # of each new pose: degrees (std), share of the side (at most)
WEEK = "2026-01-05"  # Monday of week 1


@dataclass(frozen=True)
class Pool:
    """Pictures to draw from: ``pixels`` (N, S, S, 3) uint8, ``labels`` and ``groups`` (N,)."""

    pixels: NDArray[np.uint8]
    labels: Names
    groups: Names

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: NDArray[np.bool_]) -> Pool:
        """The rows of a mask."""
        return Pool(self.pixels[rows], self.labels[rows], self.groups[rows])


@dataclass(frozen=True)
class Shot:
    """One deployment image: PNG bytes under a name within the day, and the truth."""

    path: str
    data: bytes
    label: str
    group: str


@dataclass(frozen=True)
class Scenario:
    """``strength(w)`` in [0, 1] says how far week w = 1, 2 ... is from the start.

    ``onset``: first week with any change, 0: none. ``mendable``: another model can win something
    back. ``change`` is done to each picture; ``classes`` says how often a class comes (0: a class
    that was not there at the start comes with strength 1), ``torn`` which share of the files is
    cut short.
    """

    name: str
    text: str
    onset: int
    strength: Callable[[int], float]
    change: Change = lambda image, _: image
    classes: str = "same"
    torn: float = 0.0
    mendable: bool = True


# ---- changes -----------------------------------------------------------------------------------


def _tone(
    image: Image.Image, table: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Image.Image:
    x = np.asarray(image, np.float64)  # (S, S, 3)
    return Image.fromarray(np.clip(table(x), 0, 255).astype(np.uint8))


def vendor(image: Image.Image, s: float) -> Image.Image:
    """Another vendor's camera: light ink on dark bluish paper."""
    if not s:
        return image
    tint = np.array([0.75, 0.85, 1.0])
    return _tone(image, lambda x: (275 - x) * 0.85 * tint)


def dim(image: Image.Image, s: float) -> Image.Image:
    """Less daylight: down to three quarters of the brightness."""
    return _tone(image, lambda x: x * (1 - 0.25 * s))


def blur(image: Image.Image, s: float) -> Image.Image:
    """Out of focus: a Gaussian of up to a tenth of the side."""
    return image.filter(ImageFilter.GaussianBlur(0.1 * image.width * s)) if s else image


def turn(image: Image.Image, s: float) -> Image.Image:
    """The mount gives way: by up to 60 degrees."""
    return rotated(image, 60 * s, 0, 0)


def dark(image: Image.Image, s: float) -> Image.Image:
    """Hardly any light."""
    return _tone(image, lambda x: 0.15 * x + 10) if s else image


def rotated(image: Image.Image, degrees: float, dx: float, dy: float) -> Image.Image:
    """Turned about the centre and moved by pixels; the corner's colour fills what is uncovered."""
    corner = image.getpixel((0, 0))
    found: Image.Image = image.rotate(
        degrees,
        Image.Resampling.BICUBIC,
        translate=(dx, dy),  # type: ignore[arg-type]  # parts of a pixel are moved as well
        fillcolor=corner,
    )
    return found


# ---- scenarios ---------------------------------------------------------------------------------


def _step(onset: int, end: int = 10**6) -> Callable[[int], float]:
    return lambda week: float(onset <= week < end)


def _ramp(onset: int, weeks: int) -> Callable[[int], float]:
    return lambda week: float(np.clip((week - onset + 1) / weeks, 0, 1))


def scenarios(weeks: int) -> dict[str, Scenario]:
    """All of them, with times that suit the length of the year."""
    first, length = max(2, weeks // 5), max(1, weeks // 2)
    all_ = [
        Scenario("none", "nothing changes", 0, _step(10**6)),
        Scenario(
            "seasonal",
            "daylight comes and goes twice a year",
            2,
            lambda w: float(0.5 - 0.5 * np.cos(4 * np.pi * (w - 1) / weeks)),
            dim,
        ),
        Scenario("vendor", "another vendor's camera from one week on", first, _step(first), vendor),
        Scenario(
            "blur", "the focus is lost little by little", first, _ramp(first, length // 2), blur
        ),
        Scenario("new_class", "a class that nobody trained on", first, _step(first), classes="new"),
        Scenario(
            "label_shift",
            "two classes become most of what comes",
            first,
            _step(first),
            classes="shift",
        ),
        Scenario(
            "camera",
            "for some weeks 40 % of the files are cut short, the others nearly black",
            first,
            _step(first, first + max(1, weeks // 9)),
            dark,
            torn=0.4,
            mendable=False,
        ),
        Scenario(
            "slow",
            "the mount turns by less than two degrees a week",
            first,
            _ramp(first, weeks - first),
            turn,
        ),
    ]
    return {s.name: s for s in all_}


def date_of(week: int) -> str:
    """The day that stands for a week."""
    return str(np.datetime64(WEEK) + 7 * (week - 1))


def weights(
    scenario: Scenario, week: int, labels: Names, new: str, often: tuple[str, ...]
) -> NDArray[np.float64]:
    """How often each picture (N,) is drawn, relative to the others."""
    s = scenario.strength(week)
    found = np.where(labels == new, 0.0, 1.0)
    if scenario.classes == "new":
        found = np.where(labels == new, 2 * s, found)
    if scenario.classes == "shift":
        found = np.where(np.isin(labels, often), 1 + 7 * s, found)
    result: NDArray[np.float64] = found / found.sum()
    return result


def week_of(
    scenario: Scenario,
    pool: Pool,
    week: int,
    count: int,
    seed: int,
    new: str,
    often: tuple[str, ...],
) -> list[Shot]:
    """The images of one week, each of another picture of the pool, in poses of their own.

    Raises:
        HeadwaterError: fewer pictures than images.
    """
    p = weights(scenario, week, pool.labels, new, often)
    if (p > 0).sum() < count:
        rule = f"are more than the {(p > 0).sum()} pictures to draw from"
        raise HeadwaterError(f"simulate.per_week {count}", rule, "lower it, or name a larger set")
    rng = np.random.default_rng([seed, week])
    rows = rng.choice(len(pool), count, replace=False, p=p)
    strength, shots = scenario.strength(week), []
    for row, image in zip(rows, posed(pool, rows, rng), strict=True):
        name, label = str(pool.groups[row]), str(pool.labels[row])
        data = png(scenario.change(image, strength))
        if strength and fraction(f"torn:{week}:{name}") < scenario.torn:
            data = data[: len(data) // 2]
        shots.append(Shot(f"{name}.png", data, label, name))
    return shots


def posed(pool: Pool, rows: NDArray[np.int64], rng: np.random.Generator) -> list[Image.Image]:
    """Each picture, turned and moved a little."""
    degrees, side = rng.normal(0, TURN, len(rows)), pool.pixels.shape[1]
    moves = rng.uniform(-SHIFT * side, SHIFT * side, (len(rows), 2))
    return [
        rotated(Image.fromarray(pool.pixels[row]), turned, float(dx), float(dy))
        for row, turned, (dx, dy) in zip(rows, degrees, moves, strict=True)
    ]


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def arrival(path: str, week: int, share: float, seed: int) -> int | None:
    """The week in which the label of an image comes: two in three a week later, the others three.

    None for the 1 - ``share`` of images whose label never comes. It does not depend on the image.
    """
    digest = hashlib.sha256(f"{seed}:{week}:{path}".encode()).hexdigest()
    u = int(digest[:13], 16) / 16**13
    if u >= share:
        return None
    return week + (1 if u < share * 2 / 3 else 3)
