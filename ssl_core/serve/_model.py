"""The model that answers, and its replacement while requests go on."""

from __future__ import annotations

import os
import threading
from typing import Any

from .. import embed, registry
from ..config import Paths
from ..errors import HeadwaterError
from ..registry import Model
from ..stages import predict
from ..stages.predict import Seen


class Holder:
    """``wanted`` is a model's id; empty: the champion, whichever it is at the time.

    A request keeps the model it began with: encoder, head and classes never mix.
    """

    def __init__(self, paths: Paths, wanted: str, max_pixels: int) -> None:
        self.paths, self.wanted, self.max_pixels = paths, wanted, max_pixels
        self.problem = ""  # why the champion of now does not serve
        self.model = self._load(wanted)
        self._turn = threading.Lock()  # one forward pass at a time: they share the cores
        # As many images decoded at a time as there are cores: that bounds what they take up.
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)

    def _load(self, wanted: str) -> Model:
        model = predict.choose(self.paths, wanted)
        embed.ready(model.encoder)
        return model

    def refresh(self) -> bool:
        """Take over a new champion; one that is damaged leaves the old one in service."""
        if self.wanted:
            return False
        try:
            now = registry.champion(self.paths.registry)
            if now in (self.model.id, None):
                self.problem = "" if now else "the registry has no champion any more"
                return False
            self.model = self._load("")
        except (HeadwaterError, OSError, ValueError, KeyError) as error:
            self.problem = str(error)
            return False
        self.problem = ""
        return True

    def see(self, model: Model, name: str, data: bytes) -> Seen:
        """Decode as `headwater predict` does."""
        side, size = int(model.card["max_side"]), int(model.meta["image_size"])
        with self._decoding:
            return predict.look(name, data, self.max_pixels, side, size, model.encoder.channels)

    def answer(self, model: Model, seen: list[Seen]) -> list[dict[str, Any]]:
        """Rows of the prediction log, for readable images only."""
        if not seen:
            return []
        with self._turn:
            frame = predict.name(model, seen)
        return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
