"""Which frequencies features keep, by layer: relative log amplitude (arXiv 2202.06709, 2305.00729).

0: as much at high frequencies as in the mean; the lower, the smoother the maps of features. White
noise gives log(2) / 2, since the mean's coefficient has no imaginary part.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import models
from ..config import Analyse
from . import _pictures, _tokens
from ._subject import Finding, Row, Rows, Subject

FLOOR = 1e-6
LEAST = 4  # cells a side: fewer hold the mean and one frequency


def amplitudes(maps: Tensor) -> Tensor:
    """Log amplitude relative to the mean's, along the diagonal: (B, h, w, D) -> (B, F).

    Entry 0 is the mean; the last is just below half the sampling rate where the side is even.
    """
    h, w = maps.shape[1:3]
    spectrum = torch.fft.fft2(maps.permute(0, 3, 1, 2))  # (B, h, w, D) -> (B, D, h, w)
    logs = (spectrum.abs() + FLOOR).log().mean(1)
    steps = torch.arange((min(h, w) + 1) // 2)
    diagonal = logs[:, steps, steps]  # not shifted: entry i is frequency i of both axes
    found: Tensor = diagonal - diagonal[:, :1]
    return found


def _held(encoder: models.Encoder, x: Tensor) -> list[_tokens.Layer]:
    return _tokens.layers(encoder, x, halves=True)


def _look(encoder: models.Encoder, x: Tensor) -> list[tuple[str, Tensor]]:
    wide = [layer for layer in _held(encoder, x) if min(layer.maps.shape[1:3]) >= LEAST]
    return [(layer.name, amplitudes(layer.maps)) for layer in wide]


def curves(subject: Subject, rows: Rows) -> dict[str, Tensor]:
    """Layer -> :func:`amplitudes` of every image, (B, F)."""
    found: dict[str, list[Tensor]] = {}
    for _, seen in _tokens.stream(subject, rows, _look, _held):
        for name, curve in seen:
            found.setdefault(name, []).append(curve.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _slice(name: str) -> str:
    number, _, half = name.partition("/")
    return f"layer:{number}" + (f"/{half}" if half else "")


def _pictured(found: dict[str, Tensor]) -> dict[str, bytes]:
    whole = {name: curve for name, curve in found.items() if "/" not in name}
    spectra: dict[str, _pictures.Line] = {
        f"layer {name}": (np.linspace(0, 1, curve.shape[1] + 1)[:-1], curve.mean(0).numpy())
        for name, curve in whole.items()
    }
    ends: dict[str, _pictures.Line] = {}
    for half in ("", "attention"):
        own = {n.partition("/")[0]: c for n, c in found.items() if n.partition("/")[2] == half}
        if own:
            values = [float(curve[:, -1].mean()) for curve in own.values()]
            ends[f"after {half or 'the layer'}"] = (list(own), values)
    panels = {"relative log amplitude": spectra, "highest frequency": ends}
    xlabels = ("share of half the sampling rate", "layer")
    return {"fourier": _pictures.lines(panels, xlabels)}


def run(subject: Subject, cfg: Analyse) -> Finding:
    """The highest frequency's relative log amplitude by layer, after attention too."""
    chosen = subject.draw(cfg.images)
    found = curves(subject, chosen)
    if not found:
        rule = f"has no map of features with {LEAST} cells a side at {subject.source.side} px"
        return Finding(missing=f"backbone '{subject.encoder.name}' {rule}")
    rows: list[Row] = []
    for name, curve in found.items():
        value = curve[:, -1].numpy()
        rows.append(subject.average("relative_log_amplitude", value, chosen, _slice(name)))
    return Finding(rows, _pictured(found))
