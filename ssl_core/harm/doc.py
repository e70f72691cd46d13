"""Difference of confidences (Guillory et al., arXiv 2107.03315).

Accuracy falls by as much as the mean confidence does.
"""

from __future__ import annotations

from ._common import Outputs, outcomes


def estimate(reference: Outputs, current: Outputs) -> float:
    """Reference accuracy less the fall in mean confidence, kept within [0, 1].

    Raises:
        HeadwaterError: a reference without known outcomes.
    """
    fall = reference.confidence.mean() - current.confidence.mean()
    return float(min(1.0, max(0.0, outcomes(reference).mean() - fall)))
