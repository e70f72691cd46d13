"""Pairs of copies among images, from three witnesses.

Features of a trained network forgive what re-encoding, resizing and cropping change, but also what
they were trained to ignore: a recoloured sign can score as high. The perceptual hash (pHash: signs
of the low DCT frequencies of the grey 32x32 image) is blind to that meaning but sees layout; alone
it confuses flags of equal layout. Where both agree clearly, the pair is sure. Where they only do
not object, be it for the mirror image, the aligned pixels decide. Of textured photographs features
forgive less: if they object a little, the pixels may still decide, but must agree more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import Array
from . import _pixels
from ._cells import cells
from ._union import Pairs, components
from ._vectors import MIRROR, Bits, Ints

BLOCK = 256  # rows compared with a cell at a time: bounds the pairs held where all are alike
DOUBTFUL_HAMMING = 18  # bits of 64 up to which pixels are compared
FAR = 0.2  # down to so much below ``floor`` pixels may decide ...
SURER = 0.75  # ... if they lack so much less to 1
DENSE = 8  # of a block's pairs 1 in so many: then all cosines are computed at once
NEIGHBOURS = 8  # doubtful partners per row and cell, the most similar: bounds time on dense data
NONE = np.empty((0, 2), dtype=np.int64)
# Small pictures of some rows, uint8: (n,) -> (n, 3, SIDE, SIDE)
Look = Callable[[Ints], _pixels.Pixels]


@dataclass(frozen=True)
class Limits:
    """Sure from ``cosine`` and ``hamming``; from ``floor`` if ``pixels`` agree, and see ``FAR``."""

    cosine: float
    hamming: int
    floor: float
    pixels: float


@dataclass(frozen=True)
class Rows:
    """What is compared, all aligned: unit features (N, D), pHash bits (N,).

    ``labels`` (N,) are codes, -1 unknown: a mirror image with another label is no copy (an arrow to
    the left). ``side`` (N,): if given, only pairs of different sides count.
    """

    unit: Array
    bits: Bits
    labels: Ints
    side: NDArray[np.bool_] | None = None


def find(rows: Rows, limits: Limits, look: Look | None, seed: int) -> Pairs:
    """Pairs (P, 2) whose components are the groups of copies; not all pairs of a large group.

    Without ``look`` doubtful pairs are no copies.
    """
    same = _identical(rows)
    # One of identical rows stands for all, unless it matters on which side each is.
    stands = np.ones(len(rows.bits), dtype=bool)
    if rows.side is None:
        stands[same[:, 1]] = False
    sure, doubtful = [same if rows.side is None else NONE], [NONE]
    for clear, unclear in _candidates(rows, stands, limits, look is not None, seed):
        sure.append(forest(clear))
        doubtful.append(unclear)
    if look is not None:
        sure.append(_confirmed(_distinct(np.concatenate(doubtful)), rows, limits, look))
    return np.concatenate(sure)


def _distinct(pairs: Pairs) -> Pairs:
    """Each pair once, ascending."""
    base = int(pairs.max(initial=0)) + 1
    found: Pairs = np.stack(np.divmod(np.unique(pairs[:, 0] * base + pairs[:, 1]), base), axis=1)
    return found


def forest(pairs: Pairs) -> Pairs:
    """As few pairs with the same components: (P, 2) -> (Q, 2)."""
    nodes, local = np.unique(pairs, return_inverse=True)
    if len(pairs) < len(nodes):
        return pairs
    roots = components(len(nodes), local.reshape(-1, 2))
    rest = np.flatnonzero(roots != np.arange(len(nodes)))
    return np.stack([nodes[roots[rest]], nodes[rest]], axis=1)


def _identical(rows: Rows) -> Pairs:
    """(first, other) of equal hash and features: blank pictures by the thousand stay cheap."""
    _, first, inverse = np.unique(rows.bits, return_index=True, return_inverse=True)
    twins = np.flatnonzero(first[inverse] != np.arange(len(inverse)))
    firsts = first[inverse[twins]]
    equal = np.concatenate(
        [np.empty(0, dtype=bool)]
        + [
            (rows.unit[twins[s : s + 4096]] == rows.unit[firsts[s : s + 4096]]).all(axis=1)
            for s in range(0, len(twins), 4096)
        ]
    )
    pairs: Pairs = np.stack([firsts, twins], axis=1)[equal]
    return pairs


def _candidates(
    rows: Rows, stands: NDArray[np.bool_], limits: Limits, look: bool, seed: int
) -> Iterator[tuple[Pairs, Pairs]]:
    """Sure and doubtful pairs, block by block.

    Hashes are compared for all pairs of a block, similar or not: that costs the same however
    many images are similar, and hardly any pair is left.
    """
    least = np.float32(min(limits.cosine, limits.floor - FAR) if look else limits.cosine)
    for cell in cells(rows.unit, seed):
        for one, other in _blocks(cell[stands[cell]], rows):
            alike = _alike(one.bits[:, None], other.bits, limits, look)  # (B, n)
            if rows.side is None:  # the other begins with the one: each pair once
                alike[:, : len(one.at)][np.tri(len(one.at), dtype=bool)] = False
            i, j, close = _cosines(one.unit, other.unit, alike)
            near = close >= least
            pair = one.at[i[near]], other.at[j[near]]
            yield _sorted_out(*pair, close[near], rows.bits, limits, look)


def _cosines(one: Array, other: Array, wanted: NDArray[np.bool_]) -> tuple[Ints, Ints, Array]:
    """Rows, columns and cosines where ``wanted`` (B, n): of pairs, or of all if these are many."""
    flat = np.flatnonzero(wanted)
    i, j = np.divmod(flat, wanted.shape[1])
    if len(flat) * DENSE > wanted.size:
        return i, j, (one @ other.T).ravel()[flat]
    return i, j, np.einsum("pd,pd->p", one[i], other[j])


def _alike(a: Bits, b: Bits, limits: Limits, look: bool) -> NDArray[np.bool_]:
    """Whether the hashes allow a sure or a doubtful pair: broadcast shapes."""
    odds = a ^ b
    distance, limit = np.bitwise_count(odds), limits.hamming
    if look:
        np.bitwise_xor(odds, MIRROR, out=odds)
        np.minimum(distance, np.bitwise_count(odds), out=distance)
        limit = max(limit, DOUBTFUL_HAMMING)
    near: NDArray[np.bool_] = distance <= limit
    return near


@dataclass(frozen=True)
class _Part:
    """Some rows of a cell, with what is compared of them."""

    at: Ints
    unit: Array
    bits: Bits

    def from_to(self, start: int, end: int | None) -> _Part:
        """Neighbouring rows, not copied."""
        return _Part(self.at[start:end], self.unit[start:end], self.bits[start:end])


def _blocks(cell: Ints, rows: Rows) -> Iterator[tuple[_Part, _Part]]:
    """Rows to compare with each other, (B,) and (n,); each row of the cell is fetched once."""

    def part(at: Ints) -> _Part:
        return _Part(at, rows.unit[at], rows.bits[at])

    if rows.side is None:
        whole = part(cell)
        for k in range(0, len(cell), BLOCK):
            yield whole.from_to(k, k + BLOCK), whole.from_to(k, None)
        return
    one, other = part(cell[rows.side[cell]]), part(cell[~rows.side[cell]])
    if len(other.at):
        for k in range(0, len(one.at), BLOCK):
            yield one.from_to(k, k + BLOCK), other


def _sorted_out(
    first: Ints, second: Ints, cosines: Array, bits: Bits, limits: Limits, look: bool
) -> tuple[Pairs, Pairs]:
    """Which of the similar pairs are sure, and which doubtful."""
    upright, mirrored = _distances(bits[first], bits[second])
    sure = (upright <= limits.hamming) & (cosines >= np.float32(limits.cosine))
    clear = np.stack([first[sure], second[sure]], axis=1)
    if not look:
        return clear, NONE
    close = np.flatnonzero((np.minimum(upright, mirrored) <= DOUBTFUL_HAMMING) & ~sure)
    return clear, _nearest(np.stack([first[close], second[close]], axis=1), cosines[close])


def _distances(a: Bits, b: Bits) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Hamming distance of pHashes as they are, and with one mirrored: (P,) twice."""
    odds = a ^ b
    return np.bitwise_count(odds), np.bitwise_count(odds ^ MIRROR)


def _nearest(pairs: Pairs, cosines: Array) -> Pairs:
    """At most ``NEIGHBOURS`` of each first row, by cosine."""
    order = np.lexsort((-cosines, pairs[:, 0]))
    pairs = pairs[order]
    first = np.searchsorted(pairs[:, 0], pairs[:, 0])  # where the run of this row begins
    return pairs[np.arange(len(pairs)) - first < NEIGHBOURS]


def _confirmed(pairs: Pairs, rows: Rows, limits: Limits, look: Look) -> Pairs:
    """Doubtful pairs whose pixels agree."""
    upright, mirrored = _distances(*rows.bits[pairs].T)
    turned = mirrored < upright
    known = rows.labels[pairs]
    apart = (known >= 0).all(axis=1) & (known[:, 0] != known[:, 1])
    pairs, turned = pairs[~(turned & apart)], turned[~(turned & apart)]
    if not len(pairs):
        return NONE
    nodes, local = np.unique(pairs, return_inverse=True)
    pictures, (a, b) = look(nodes), local.reshape(-1, 2).T
    hope = np.flatnonzero(_pixels.hopeful(pictures, a, b, turned))
    agreed = [np.empty(0, dtype=bool)]
    for start in range(0, len(hope), _pixels.BATCH):
        at = hope[start : start + _pixels.BATCH]
        second = _pixels.mirrored(pictures[b[at]], turned[at])
        score = _pixels.agreement(pictures[a[at]], second)
        agreed.append(score >= _needed(pairs[at], rows.unit, limits))
    found: Pairs = pairs[hope[np.concatenate(agreed)]]
    return found


def _needed(pairs: Pairs, unit: Array, limits: Limits) -> NDArray[np.float64]:
    """How much the pixels of each pair must agree: (P, 2) -> (P,). Few pairs: rows are copied."""
    cosines = np.einsum("pd,pd->p", unit[pairs[:, 0]], unit[pairs[:, 1]])
    far = cosines < np.float32(limits.floor)
    return np.where(far, limits.pixels + SURER * (1 - limits.pixels), limits.pixels)
