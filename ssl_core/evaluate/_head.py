"""A linear head as a file: features in, calibrated probabilities by class name out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import atomic_file, read_json, sha256_file, write_json
from ..errors import HeadwaterError
from ..types import Array

WEIGHTS, META = "head.safetensors", "head.json"


@dataclass(frozen=True)
class Head:
    """``weight`` (C, D) and ``bias`` (C,) act on raw features: standardisation is folded in.

    ``classes`` names row i; ``temperature`` divides the logits; ``about`` says how it was fitted.
    """

    weight: Array
    bias: Array
    classes: tuple[str, ...]
    temperature: float
    about: dict[str, Any]

    def logits(self, features: Array) -> Array:
        """(N, D) -> (N, C), before the temperature.

        Raises:
            HeadwaterError: features of another width.
        """
        if features.shape[1] != self.weight.shape[1]:
            rule = f"do not fit a head for {self.weight.shape[1]}"
            fix = "use the head that was fitted on this encoder"
            raise HeadwaterError(f"features of {features.shape[1]} dimensions", rule, fix)
        out: Array = features.astype(np.float32) @ self.weight.T + self.bias
        return out

    def probabilities(self, features: Array) -> Array:
        """(N, D) -> (N, C), rows sum to one."""
        return softmax(self.logits(features) / self.temperature)

    def predict(self, features: Array) -> tuple[NDArray[np.str_], Array]:
        """Class names (N,) and their probabilities (N,)."""
        p = self.probabilities(features)
        best = p.argmax(1)
        return np.asarray(self.classes)[best], p[np.arange(len(p)), best]


def softmax(logits: Array) -> Array:
    """(N, C) -> (N, C)."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = p / p.sum(axis=1, keepdims=True)
    return result


def save(head: Head, folder: Path) -> None:
    """Write head.safetensors and head.json; equal heads give equal bytes."""
    from safetensors.numpy import save_file

    tensors = {"weight": head.weight, "bias": head.bias}
    with atomic_file(folder / WEIGHTS) as temp:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, temp)
    write_json(
        folder / META,
        {
            **head.about,
            "classes": list(head.classes),
            "temperature": head.temperature,
            "sha256": sha256_file(folder / WEIGHTS),
        },
    )


def load(folder: Path) -> Head:
    """Read a head written by :func:`save`.

    Raises:
        HeadwaterError: files missing, or weights that are not the ones head.json describes.
    """
    from safetensors.numpy import load_file

    file = folder / WEIGHTS
    if not file.exists() or not (folder / META).exists():
        raise HeadwaterError(folder, f"holds no {WEIGHTS} with {META}", "run stage evaluate")
    meta = read_json(folder / META)
    if sha256_file(file) != meta["sha256"]:
        fix = "run stage evaluate again, or dvc checkout"
        raise HeadwaterError(file, f"does not have the sha256 in {META}", fix)
    found = load_file(file)
    about = {k: v for k, v in meta.items() if k not in ("classes", "temperature", "sha256")}
    classes = tuple(meta["classes"])
    return Head(found["weight"], found["bias"], classes, float(meta["temperature"]), about)
