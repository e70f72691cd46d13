"""Shape or texture: which cue a probe follows where they disagree (arXiv 1811.12231).

Silhouettes filled with textures, drawn here. A linear probe learns from items whose shape and
texture say the same, and is asked about items where they do not. ``shape_bias`` is the share of
shape among answers that are either; how well each cue can be read at all stands beside it, since a
bias may be for want of the other. Companions on the subject's own images: tiles shuffled (no shape
left), low and high frequencies only, and noise of one band (2202.06709).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import Analyse
from ..evaluate import _common, linear
from ..types import Labels
from . import _filters, _pictures, _scenes, _stats
from ._subject import Finding, Row, Subject

KINDS = len(_scenes.SHAPES)
PER_KIND, PER_PAIR, FREE = 40, 8, 480
TILES, LOW, HIGH = (2, 4, 8), (0.4, 0.2), (0.05, 0.1)
BANDS, STRENGTH = ((0.0, 0.3), (0.3, 0.6), (0.6, 1.0)), 0.1
Pairs = NDArray[np.int64]


def congruent() -> Pairs:
    """Shape k with texture k, ``PER_KIND`` times: (N, 2)."""
    return np.repeat(np.arange(KINDS), PER_KIND)[:, None].repeat(2, 1)


def conflicting() -> Pairs:
    """Every shape with every other texture, ``PER_PAIR`` times: (N, 2)."""
    both = [(s, t) for s in range(KINDS) for t in range(KINDS) if s != t]
    return np.repeat(np.array(both, np.int64), PER_PAIR, axis=0)


def bias(answers: Labels, pairs: Pairs) -> list[Row]:
    """Rows of the cue conflict for answers (N,) to items of shape and texture (N, 2)."""
    shape, either = answers == pairs[:, 0], (answers[:, None] == pairs).any(1)
    return [
        _stats.share("shape_bias", shape, "cue_conflict", either),
        _stats.share("either_cue", either, "cue_conflict"),
    ]


def conflict(subject: Subject) -> list[Row]:
    """The cue conflict, and how well either cue is read where both are free."""
    rng = np.random.default_rng(subject.seed)
    side, channels = subject.source.side, subject.source.channels
    learnt, asked = congruent(), conflicting()
    free = rng.integers(0, KINDS, (FREE, 2))
    known, items, mixed = (
        subject.features(_scenes.cues(pairs, side, channels, rng))
        for pairs in (learnt, asked, free)
    )
    rows = bias(_stats.probed(known, learnt[:, 0], items), asked)
    cut = FREE * 2 // 3
    for place, name in enumerate(("shape", "texture")):
        told = _stats.probed(mixed[:cut], free[:cut, place], mixed[cut:])
        rows.append(_stats.share(f"{name}_accuracy", told == free[cut:, place], "free_cues"))
    return rows


Change = Callable[[Tensor], Tensor]


def changes(side: int, seed: int) -> Iterator[tuple[str, Change]]:
    """By slice, what is done to images."""
    yield "clean", lambda x: x
    for tiles in TILES:
        if side % tiles == 0:
            yield f"tiles:{tiles}", partial(_filters.shuffled, tiles=tiles, seed=seed)
    for cut in LOW:
        yield f"low_pass:{cut}", partial(_filters.low_passed, cut=cut)
    for cut in HIGH:
        yield f"high_pass:{cut}", partial(_filters.high_passed, cut=cut)
    for band in BANDS:
        name = f"noise:{band[0]}-{band[1]}"
        yield name, partial(_filters.noisy, band=band, strength=STRENGTH, seed=seed)


def companions(subject: Subject, count: int) -> list[Row]:
    """Accuracy of the clean images' linear probe on changed ones."""
    chosen = subject.draw(count, labelled=True)
    images, train = subject.source.take(chosen).cpu(), _common.require_labels(subject.train)
    rows = []
    for name, change in changes(subject.source.side, subject.seed):
        told = linear.named(subject.head, train, subject.features(change(images)))
        right = told == subject.rows.labels[chosen]
        rows.append(subject.average("linear_accuracy", right, chosen, name))
    return rows


def _pictured(subject: Subject, rows: list[Row]) -> dict[str, bytes]:
    rng = np.random.default_rng(subject.seed)
    side, channels = subject.source.side, subject.source.channels
    same = np.arange(KINDS)[:, None].repeat(2, 1)
    other = np.stack([np.arange(KINDS), (np.arange(KINDS) + 1) % KINDS], 1)
    drawn = [_scenes.cues(pairs, side, channels, rng) for pairs in (same, other)]
    cells = [[_pictures.rgb(image) for image in images] for images in drawn]
    image = subject.source.take(subject.draw(1)).cpu()
    changed = [_pictures.rgb(c(image)[0]) for _, c in changes(side, subject.seed)]
    cells += [changed[i : i + KINDS] for i in range(0, len(changed), KINDS)]
    pictures = {"texture_samples": _pictures.sheet(cells)}
    own = {r["slice"]: {"accuracy": r["value"]} for r in rows if r["metric"] == "linear_accuracy"}
    if own:
        title = "Linear probe on changed images"
        pictures["texture"] = _pictures.bars(own, title, "accuracy")
    return pictures


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Shape bias, and accuracy without shape or without some frequencies."""
    rows = conflict(subject)
    if not subject.unlabelled:
        rows += companions(subject, max(cfg.images // 2, 1))
    return Finding(rows, _pictured(subject, rows))
