"""What the methods' configurations share: the optimiser's side and the views."""

from __future__ import annotations

from typing import Literal

from ..config import Section
from ..types import View

Range = tuple[float, float]


class Recipe(Section):
    """The optimiser. ``lr`` is per 256 images."""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # reached by a cosine; None: constant
    betas: Range = (0.9, 0.98)  # sgd and lars: the first is the momentum


class Pair(Recipe):
    """Two global views; ``blur`` and ``solarise`` are chances in the first and the second."""

    scale: Range = (0.2, 1.0)  # share of the image's area
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # and hue last
    jitter_p: float = 0.8
    grey: float = 0.2
    flip: float = 0.5
    blur: Range = (0.0, 0.0)
    solarise: Range = (0.0, 0.0)

    def view(self, size: int, scale: Range, blur: float, solarise: float, count: int = 1) -> View:
        """One recipe with this configuration's colours."""
        return View(
            size,
            scale,
            count=count,
            flip=self.flip,
            jitter=self.jitter,
            jitter_p=self.jitter_p,
            grey=self.grey,
            blur=blur,
            solarise=solarise,
        )

    def pair(self, size: int) -> list[View]:
        """Both global views, of side ``size``."""
        return [self.view(size, self.scale, self.blur[i], self.solarise[i]) for i in (0, 1)]


class MultiCrop(Pair):
    """Two global views and ``locals_`` small ones of about ``local_size`` of their side."""

    scale: Range = (0.4, 1.0)
    local_scale: Range = (0.1, 0.4)
    local_size: float = 0.5
    locals_: int = 4
    local_blur: float = 0.0

    def crops(self, size: int, stride: int) -> list[View]:
        """Global views of side ``size``, local ones of the nearest multiple of ``stride``."""
        small = max(stride, round(size * self.local_size / stride) * stride)
        local = self.view(small, self.local_scale, self.local_blur, 0.0, self.locals_)
        return self.pair(size) + ([local] if self.locals_ else [])


# The colours of BYOL (arXiv 2006.07733), which MoCo v3, VICReg and the DINO family share.
BYOL_COLOURS = {
    "jitter": (0.4, 0.4, 0.2, 0.1),
    "jitter_p": 0.8,
    "grey": 0.2,
    "blur": (1.0, 0.1),
    "solarise": (0.0, 0.2),
}
