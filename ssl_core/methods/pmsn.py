"""PMSN (arXiv 2210.07277): MSN whose prototypes may be used as unequally as classes are.

The prior is a power law. Sinkhorn-Knopp balances targets to the prior, not to equal use: in short
runs the regulariser alone lets them collapse to a few prototypes (LOG.md).
"""

from __future__ import annotations

from . import msn


class Config(msn.Config):
    """Defaults for small images and data sets of thousands."""

    prior: float | tuple[float, ...] = 0.25


PAPER = msn.PAPER | {"iterations": 0}
KNOB = msn.KNOB
Method = msn.Method
