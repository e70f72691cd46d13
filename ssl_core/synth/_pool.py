"""What generators see and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..config import Section
from ..errors import HeadwaterError
from ..types import Labels

Pixels = NDArray[np.uint8]
Wanted = dict[int, int]  # label -> candidates


@dataclass(frozen=True)
class Pool:
    """Real training images: ``pixels`` (N, S, S, 3), ``labels`` (N,) with -1 for unknown."""

    pixels: Pixels
    labels: Labels
    classes: tuple[str, ...]

    def of(self, label: int) -> NDArray[np.int64]:
        """Rows of one class."""
        return np.flatnonzero(self.labels == label)


@dataclass(frozen=True)
class Made:
    """A candidate: (H, W, 3), its class, and the rows of the pool whose pixels are in it."""

    pixels: Pixels
    label: int
    parents: tuple[int, ...] = ()


def checked(kind: type[Section], options: dict[str, Any], where: str) -> Any:
    """Options of one generator.

    Raises:
        HeadwaterError: an unknown key or a bad value.
    """
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{where}.{'.'.join(map(str, first['loc']))}"
        known = ", ".join(kind.model_fields)
        raise HeadwaterError(place, first["msg"], f"known here: {known}") from None
