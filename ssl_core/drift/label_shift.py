"""Label shift seen through predictions: black-box shift estimation (arXiv 1802.03916).

If only the shares of classes have changed, p(x | y) being as it was, the predicted classes change
with them. Test: the histograms of predictions, by permutation. Estimate: the weights
w = C^-1 m, C(i, j) the reference's share of images named i that are j, m(i) the share named i
now; w(j) is how much more frequent class j has become. C needs the reference's true labels and
must be invertible; the weights mean nothing if more than the shares has changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import HeadwaterError
from ..types import Score
from ._common import Groups, check_shapes, chi_square, pile, test

SEES = "classes"
LEAST = 8
MOST = 20_000  # rows in all: counts are cheap
SINGULAR = 1e-3  # smallest singular value of C, relative to the largest, that is inverted

Text = NDArray[np.str_]


def check_classes(reference: ArrayLike, current: ArrayLike) -> tuple[Text, Text]:
    """Both samples as text (N, 2) and (M, 2).

    Raises:
        HeadwaterError: other shapes, fewer than 8 rows, or an image without a predicted class.
    """
    pair = np.asarray(reference, np.str_), np.asarray(current, np.str_)
    check_shapes(pair, LEAST)
    if pair[0].shape[1] != 2:
        rule = "does not hold predicted and true class"
        raise HeadwaterError(f"shape {pair[0].shape}", rule, "give two columns of text")
    if any((x[:, 0] == "").any() for x in pair):
        raise HeadwaterError("predictions", "are not all named", "predict this partition again")
    return pair


def weights(reference: Text, current: Text) -> dict[str, Any]:
    """``weights`` and ``shares`` by class, or why there are none.

    Weights are clipped at zero, and scaled so that the shares add up to one.
    """
    known = reference[reference[:, 1] != ""]
    classes = sorted(set(known[:, 1]))
    if not len(known) or not set(current[:, 0]) <= set(classes):
        return {"weights": None, "why": "the reference has no true labels of a predicted class"}
    place = {c: i for i, c in enumerate(classes)}
    named = [place.get(c, -1) for c in known[:, 0]]
    joint = np.zeros((len(classes) + 1, len(classes)))  # last row: named what no label is
    np.add.at(joint, (named, [place[c] for c in known[:, 1]]), 1 / len(known))
    joint = joint[:-1]
    values = np.linalg.svd(joint, compute_uv=False)
    if values[-1] < SINGULAR * values[0]:
        return {"weights": None, "why": "the confusion matrix cannot be inverted"}
    now = np.array([(current[:, 0] == c).mean() for c in classes])
    found = np.maximum(np.linalg.solve(joint, now), 0)
    was = joint.sum(axis=0)
    found = found / (found @ was)
    return {
        "weights": dict(zip(classes, found.tolist(), strict=True)),
        "shares": dict(zip(classes, (found * was).tolist(), strict=True)),
    }


def score(
    reference: ArrayLike,
    current: ArrayLike,
    rng: np.random.Generator,
    permutations: int,
    groups: Groups | None = None,
) -> Score:
    """Compare predicted classes. ``statistic`` is Pearson's chi-square of the 2 x C table.

    Raises:
        HeadwaterError: see :func:`check_classes`.
    """
    sides = check_classes(reference, current)
    heap = pile(sides, groups, MOST, rng)
    names, label = np.unique(heap.rows[:, 0], return_inverse=True)
    onehot = np.eye(len(names))[label.ravel()]
    observed, p = test(heap, lambda marks: chi_square(onehot, marks), rng, permutations)
    first = heap.truth == 1
    predicted = {
        str(c): [float(onehot[side, i].mean()) for side in (first, ~first)]
        for i, c in enumerate(names)
    }
    about = {**heap.about(permutations), "predicted": predicted, **weights(*sides)}
    return Score(observed, p, len(sides[1]), about)
