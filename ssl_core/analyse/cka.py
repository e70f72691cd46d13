"""Likeness of layers by linear CKA over minibatches, unbiased (arXiv 1905.00414, 2010.15327).

1: equal up to a rotation and a scale; independent features have 0 in expectation, which the biased
estimate has not. Numerator and denominators are summed over batches, then divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Analyse
from ..errors import HeadwaterError
from . import _pictures, _tokens
from ._subject import Finding, Row, Rows, Subject, row

BATCH = 64
LEAST = 4  # images that the unbiased estimate needs
Matrix = NDArray[np.float64]


def kernel(features: Tensor) -> Tensor:
    """Linear kernel without its diagonal: (n, ...) -> (n, n) float64."""
    flat = features.flatten(1).double()
    flat = flat - flat.mean(0)  # HSIC does not change; digits are saved
    return (flat @ flat.T).fill_diagonal_(0)


def hsic(first: Sequence[Tensor], second: Sequence[Tensor]) -> Matrix:
    """Unbiased HSIC_1 of every pair of kernels (n, n) with a zero diagonal: (len, len).

    Raises:
        HeadwaterError: fewer than four images.
    """
    n = first[0].shape[0]
    if n < LEAST:
        rule = f"are too few for CKA, which needs {LEAST}"
        raise HeadwaterError(f"{n} images in a batch", rule, "set analyse.images to 64 or more")
    k, m = torch.stack(list(first)), torch.stack(list(second))  # (L, n, n)
    trace = k.flatten(1) @ m.flatten(1).T
    rows, columns = k.sum(-1), m.sum(-1)  # (L, n)
    totals = rows.sum(-1)[:, None] * columns.sum(-1)[None, :]
    found = trace + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows @ columns.T)
    values: Matrix = (found / (n * (n - 3))).cpu().numpy()
    return values


Sums = tuple[Matrix, Matrix, Matrix]  # of HSIC between, and of each with itself


def sums(first: Sequence[Tensor], second: Sequence[Tensor]) -> Sums:
    """What one batch adds: features (n, ...) of layers of two encoders."""
    k, m = [kernel(f) for f in first], [kernel(f) for f in second]
    own = [np.array([hsic([x], [x])[0, 0] for x in side]) for side in (k, m)]
    return hsic(k, m), own[0], own[1]


def cka(parts: Iterable[Sums]) -> Matrix:
    """Batches' sums -> CKA (L, M); NaN for a layer without variance."""
    both, first, second = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    scale = np.sqrt(np.maximum(first[:, None] * second[None, :], 0))
    values: Matrix = np.divide(both, scale, out=np.full_like(both, np.nan), where=scale > 0)
    return values


def _errors(parts: Sequence[Sums]) -> Matrix:
    """Jackknife standard errors over batches, (L, M); NaN for fewer than three."""
    n = len(parts)
    if n < 3:
        return np.full_like(parts[0][0], np.nan)
    without = np.stack([cka([p for j, p in enumerate(parts) if j != i]) for i in range(n)])
    values: Matrix = np.sqrt((n - 1) * without.var(axis=0))
    return values


def _batches(rows: Rows) -> list[Rows]:
    """Rows in batches of equal size; what is left over takes no part."""
    size = min(BATCH, len(rows))
    return [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)] if size else []


@torch.inference_mode()
def _maps(subject: Subject, rows: Rows) -> dict[str, Tensor]:
    """Layer -> all of its features, patches and other tokens: (n, ...)."""
    found = _tokens.layers(subject.encoder, subject.inputs(rows))
    return {
        layer.name: torch.cat([layer.prefix.flatten(1), layer.maps.flatten(1)], 1)
        for layer in found
    }


def compare(
    first: Subject, second: Subject, rows: Rows
) -> tuple[tuple[list[str], list[str]], Matrix, Matrix]:
    """Names of both encoders' layers, their CKA (L, M), and its standard errors."""
    parts: list[Sums] = []
    names: tuple[list[str], list[str]] = ([], [])
    for batch in _batches(rows):
        a = _maps(first, batch)
        b = a if second is first else _maps(second, batch)
        names = (list(a), list(b))
        parts.append(sums(list(a.values()), list(b.values())))
    return names, cka(parts), _errors(parts)


def _row(metric: str, value: float, error: float, n: int, slice_: str) -> Row:
    return row(metric, value, n, slice_, (value - 1.96 * error, value + 1.96 * error))


def between(a: Subject, b: Subject, cfg: Analyse) -> Finding:
    """Layers of one encoder against those of another, on the same images.

    Rows: ``cka_nearest`` of each layer of ``a``, to whichever layer of ``b`` is most like it; and
    ``cka_last`` of both encoders' last layers.

    Raises:
        HeadwaterError: the subjects hold different images.
    """
    if not np.array_equal(a.rows.sha256, b.rows.sha256):
        rule = "hold different images: their features cannot be compared"
        raise HeadwaterError(f"subjects {a.name} and {b.name}", rule, "give both the same rows")
    chosen = a.draw(cfg.images)
    if len(chosen) < LEAST:
        return Finding(missing=f"fewer than {LEAST} test images")
    names, values, errors = compare(a, b, chosen)
    rows = []
    for i, name in enumerate(names[0]):
        j = int(np.nanargmax(values[i])) if np.isfinite(values[i]).any() else 0
        where = f"layer:{name}"
        rows.append(_row("cka_nearest", values[i, j], errors[i, j], len(chosen), where))
    rows.append(_row("cka_last", values[-1, -1], errors[-1, -1], len(chosen), "all"))
    ticks = ((f"layer of {a.name}", names[0]), (f"layer of {b.name}", names[1]))
    return Finding(rows, {"cka_between": _pictures.heat(values, "Linear CKA", *ticks)})


def run(subject: Subject, cfg: Analyse) -> Finding:
    """CKA of every layer with every other: how much each changes what it is given."""
    chosen = subject.draw(cfg.images)
    if len(chosen) < LEAST:
        return Finding(missing=f"fewer than {LEAST} test images")
    (names, _), values, errors = compare(subject, subject, chosen)
    rows = []
    for i, name in enumerate(names):
        if i:
            pair = values[i, i - 1], errors[i, i - 1]
            rows.append(_row("cka_to_layer_before", *pair, len(chosen), f"layer:{name}"))
        pair = values[i, -1], errors[i, -1]
        rows.append(_row("cka_to_last_layer", *pair, len(chosen), f"layer:{name}"))
    ticks = ("layer", names)
    return Finding(rows, {"cka": _pictures.heat(values, "Linear CKA", ticks, ticks)})
