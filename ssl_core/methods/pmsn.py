"""PMSN (arXiv 2210.07277): MSN whose prototypes may be used as unequally as classes are.

The prior is a power law. Sinkhorn-Knopp, which pulls targets to equal use, is off.
"""

from __future__ import annotations

from . import msn


class Config(msn.Config):
    """Defaults for small images and data sets of thousands."""

    iterations: int = 0
    prior: float | tuple[float, ...] = 0.25


PAPER = msn.PAPER
KNOB = msn.KNOB
Method = msn.Method
