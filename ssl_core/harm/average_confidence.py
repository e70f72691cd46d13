"""Average confidence: accuracy is what the model believes of itself.

CBPE without calibration. Right only where confidence is calibrated on the images at hand.
"""

from __future__ import annotations

from ._common import Outputs


def estimate(reference: Outputs, current: Outputs) -> float:
    """Mean confidence of the current images; the reference has no say."""
    return float(current.confidence.mean())
