"""Objects found without labels: where the class token looks, and the patches' main component.

No choice here sees a mask: thresholds are fixed or follow from the features, and which side of the
component is the object is read from the border, where objects seldom are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from . import _masks, _tokens
from ._masks import Mask
from ._subject import Rows, Subject

MASS = 0.6  # share of the attention that the found patches hold (arXiv 2104.14294)
Maps = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Masks (B, h, w) by way of finding, and what they were cut from: ``scores`` (B, h, w)."""

    masks: dict[str, Mask]
    scores: dict[str, Maps]
    colours: Maps  # (B, h, w, 3): the main components of all images together


def by_mass(scores: Maps, mass: float = MASS) -> Mask:
    """The fewest cells that hold ``mass`` of the sum, for each map (B, h, w)."""
    flat = scores.reshape(len(scores), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    share = np.take_along_axis(flat, order, 1).cumsum(1) / flat.sum(1, keepdims=True)
    # A cell belongs to them if what comes before it falls short of the mass.
    kept = np.concatenate([np.zeros((len(flat), 1)), share[:, :-1]], 1) < mass - 1e-12
    out = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(out, order, kept, 1)
    return out.reshape(scores.shape)


def threshold(values: Maps) -> float:
    """The cut that parts values best into two groups (Otsu 1979): least variance within them."""
    ordered = np.sort(values.ravel())
    n = len(ordered)
    count = np.arange(1, n)
    low = ordered.cumsum()[:-1] / count
    high = (ordered.sum() - ordered.cumsum()[:-1]) / (n - count)
    apart = count * (n - count) * (high - low) ** 2
    best = int(apart.argmax()) if n > 1 else 0
    return float((ordered[best] + ordered[min(best + 1, n - 1)]) / 2)


def components(maps: NDArray[np.floating], count: int = 3) -> Maps:
    """Main components of all images' patches together: (B, h, w, D) -> (B, h, w, count)."""
    flat = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    wide = flat.shape[1] > flat.shape[0]  # take the smaller of the two Gram matrices
    values, vectors = np.linalg.eigh(flat @ flat.T if wide else flat.T @ flat)
    found = vectors * np.sqrt(values.clip(0)) if wide else flat @ vectors
    found = found[:, ::-1][:, :count]
    missing = count - found.shape[1]
    return np.pad(found, ((0, 0), (0, missing))).reshape(*maps.shape[:3], count)


def border(shape: tuple[int, ...]) -> Mask:
    """The outermost cells of a map (h, w)."""
    out = np.ones(shape, np.bool_)
    out[1:-1, 1:-1] = False
    return out


def by_component(maps: NDArray[np.floating]) -> tuple[Mask, Maps]:
    """Masks from each image's own main component, and the component with its object up.

    (B, h, w, D) -> (B, h, w) twice. The object is on the side of the cut where the smaller share of
    the border's cells lies. Each image has a component and a cut of its own: one for all images
    together follows what makes images differ (emoji, four encoders: IoU 0.06 to 0.48 with one,
    0.49 to 0.60 so).
    """
    scores = np.stack([components(own[None], 1)[0, ..., 0] for own in maps])
    masks, edge = np.zeros(scores.shape, np.bool_), border(scores.shape[1:])
    for i, score in enumerate(scores):
        cut = threshold(score)
        if (score[edge] > cut).mean() > 0.5:
            scores[i], cut = -score, -cut
        masks[i] = scores[i] > cut
    return masks, scores


def by_attention(subject: Subject, rows: Rows) -> Maps:
    """What the last layer's class token attends to, mean over heads: (B, h, w)."""
    encoder, side = subject.encoder, subject.source.side
    grid = (side // encoder.stride, side // encoder.stride)
    parts = [
        seen[-1][:, :, 0, encoder.n_prefix :].mean(1).double().cpu()
        for _, seen in _tokens.stream(subject, rows, _tokens.attentions)
    ]
    found: Maps = torch.cat(parts).unflatten(1, grid).numpy()  # (B, L) -> (B, h, w)
    return found


def find(subject: Subject, rows: Rows) -> Found:
    """Objects of all ``rows``, by every way that the encoder allows."""
    maps = _tokens.maps(subject, rows)[1].numpy()
    mask, score = by_component(maps)
    masks, scores = {"pca": mask}, {"pca": score}
    if _tokens.has_attention(subject.encoder) and _tokens.has_class_token(subject.encoder):
        scores["attention"] = by_attention(subject, rows)
        masks["attention"] = by_mass(scores["attention"])
    return Found(masks, scores, components(maps))


def centred(side: int, share: float) -> Mask:
    """A disc in the middle that covers so much of the image: what needs no encoder at all."""
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    return np.asarray(y**2 + x**2 <= share * side**2 / np.pi, np.bool_)


def baselines(side: int, count: int) -> dict[str, Mask]:
    """Masks (B, S, S) of those who did not look: everything, and a disc over half the image."""
    whole = {"everything": np.ones((side, side), np.bool_), "disc": centred(side, 0.5)}
    return {name: np.broadcast_to(mask, (count, side, side)) for name, mask in whole.items()}


def pixels(found: Found, side: int) -> dict[str, Mask]:
    """The found masks at the image's size, (B, S, S)."""
    return {k: _masks.enlarged(m, side).astype(np.bool_) for k, m in found.masks.items()}
