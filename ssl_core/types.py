"""Small value types that cross module borders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """How one kind of view is cut from an image. Probabilities are per sample.

    ``jitter`` is (brightness, contrast, saturation, hue) strength; ``scale`` is the crop's
    share of the image area; ``count`` views of this kind are made per image.
    """

    size: int
    scale: tuple[float, float]
    count: int = 1
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0


@dataclass(frozen=True)
class Task:
    """What a method is built for.

    ``image_size``: side of the global crop; ``steps``: length of training; ``classes``: number
    of known labels' classes, 0 without labels.
    """

    image_size: int
    steps: int
    classes: int = 0


@dataclass(frozen=True)
class Embeddings:
    """Frozen features of one split: ``features`` (N, D) float32, rows aligned with the rest.

    ``labels`` (N,) int64 with -1 for unknown; ``classes`` names label i; ``groups`` and
    ``sources`` (N,) str are used for leak-free splits and per-source results.
    """

    features: Array
    labels: Labels
    classes: tuple[str, ...]
    sha256: NDArray[np.str_]
    groups: NDArray[np.str_]
    sources: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Score:
    """A two-sample detector's answer. ``p_value`` is valid under exchangeability."""

    statistic: float
    p_value: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)
