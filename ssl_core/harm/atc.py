"""Average thresholded confidence (Garg et al., arXiv 2201.04234), on the highest probability.

A threshold that as many reference images fall below as are wrong; accuracy is the share of
current images at or above it.
"""

from __future__ import annotations

import numpy as np

from ._common import Outputs, outcomes


def threshold(reference: Outputs) -> float:
    """The smallest confidence of which at most the number of errors lies strictly below.

    Without ties, exactly that number does. Infinite where every image is wrong.

    Raises:
        HeadwaterError: a reference without known outcomes.
    """
    wrong = round(float((1 - outcomes(reference)).sum()))
    ordered = np.sort(reference.confidence)
    return float(ordered[wrong]) if wrong < len(ordered) else float("inf")


def estimate(reference: Outputs, current: Outputs) -> float:
    """Share of current images at or above the threshold.

    Raises:
        HeadwaterError: a reference without known outcomes.
    """
    return float((current.confidence >= threshold(reference)).mean())
