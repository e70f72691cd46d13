"""What two-view methods show while they train."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> dict[str, float | Tensor]:
    """Of two (B, d) projections, row i of both from image i.

    ``positive``: mean cosine of partners. ``std``: spread of the unit projections times sqrt(d);
    1 when isotropic, 0 when collapsed.
    """
    unit = F.normalize(torch.cat([a, b]).float(), dim=1)
    positive = (unit[: len(a)] * unit[len(a) :]).sum(1).mean()
    return {"positive": positive, "std": unit.std(0).mean() * unit.shape[1] ** 0.5}
