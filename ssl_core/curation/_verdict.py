"""How a step says that rows go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from ._vectors import Ints


def drop(
    frame: pd.DataFrame,
    at: Ints,
    reason: str,
    detail: str | Sequence[str],
    dup_of: NDArray[Any] | None = None,
) -> pd.DataFrame:
    """Clear ``keep`` of the rows at positions ``at`` (n,) and say why; ``frame`` is changed."""
    lost = frame.index[at]
    frame.loc[lost, "keep"] = False
    frame.loc[lost, "reason"] = reason
    frame.loc[lost, "detail"] = detail
    if dup_of is not None:
        frame.loc[lost, "dup_of"] = dup_of
    return frame
