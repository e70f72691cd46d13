"""Harm, where labels have come: accuracy on one day beside the reference's, and its proof."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..config import Config, Deploy
from ..harm._accuracy import newcombe
from ._estimates import normal, proof
from ._labelled import Labelled, Outcome


def accuracy(
    cfg: Config, labelled: Labelled | None, reference: pd.DataFrame, date: str, past: list[Outcome]
) -> dict[str, Any] | None:
    """Accuracy where labels have come, beside the reference's; None without any label.

    Images of one group are not independent evidence: where labels.csv has ``group``, intervals
    count groups, not images. A label the model does not know counts as an error. Labels of a
    request count by their chance of being asked for. ``proof`` is of all labels of the model.
    """
    known = normal(reference)
    if labelled is None or known is None:
        return None
    value, n = known
    found = labelled.accuracy()
    down, up = newcombe(found.value * found.n, found.n, value * n, n)
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": len(labelled.frame),
        "groups": int(labelled.frame["group"].nunique()),
        "effective_n": found.n,
        "reference": value,
        "reference_n": n,  # independent images that tell as much
        "difference": found.value - value,
        "difference_low": down,
        "difference_high": up,
        "proof": proof(cfg, date, reference, past),
    }


def enough(deploy: Deploy, found: dict[str, Any]) -> bool:
    """Whether there are labels enough to judge, of all days of the model together."""
    return bool(found["proof"] and found["proof"]["labels"] >= deploy.min_labels)


def harmed(deploy: Deploy, found: dict[str, Any] | None) -> bool:
    """Whether labels prove a loss of more than ``min_drop``, and this day shows it."""
    if found is None or not enough(deploy, found):
        return False
    return bool(found["proof"]["harm"] and found["difference"] < -deploy.min_drop)
