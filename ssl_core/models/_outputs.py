"""What an encoder takes and returns."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor


class EncoderOutput(NamedTuple):
    """``cls`` (B, D)|None; ``patch`` (B, h, w, D), with ``keep`` (B, K, D); ``pooled`` (B, D).

    With ``need="pooled"`` there is no ``patch`` (None); with a mask as ``need`` it is (M, D).
    """

    cls: Tensor | None
    patch: Tensor  # None where it is not needed
    pooled: Tensor


# What of the output is used: everything; pooled features only; or pooled features and the
# patches at the M true entries of a mask (B, L), best on the CPU (no waiting for the device).
Need = Literal["all", "pooled"] | Tensor


class Crops(NamedTuple):
    """One group of images of equal size: the arguments of :class:`Encoder`'s forward."""

    images: Tensor  # (B, C, H, W)
    keep: Tensor | None = None
    mask: Tensor | None = None
    token: Tensor | None = None
    need: Need = "all"


class PackedOutput(NamedTuple):
    """``parts``: the output of each group; ``pooled``: those of all, (sum of B, D)."""

    parts: list[EncoderOutput]
    pooled: Tensor


def needed(out: EncoderOutput, need: Need) -> EncoderOutput:
    """The output without what is not needed."""
    if isinstance(need, str):
        return out if need == "all" else out._replace(patch=None)  # type: ignore[arg-type]
    # (B, h, w, D) or (B, K, D) -> (M, D)
    return out._replace(patch=out.patch.flatten(1, -2)[need.flatten(1).to(out.patch.device)])
