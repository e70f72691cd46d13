"""Fine-tuning from a head of zeros beside LP-FT, from the linear probe on, at one budget.

The first gradients of an unfitted head move the features at random; from the probe on they start
small (arXiv 2202.10054). ``drift`` says how far the features of held-out images moved.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from .. import finetune
from ..config import Analyse
from ..types import Array, Labels
from ._subject import Finding, Rows, Subject
from ._tuning import OFF, TEST, accuracies, codes, named, picture

ARMS = ("fine_tune", "lp_ft")


@dataclass(frozen=True)
class Tuned:
    """What an arm made of test images: features (M, D) and named classes (M,)."""

    features: Array
    predicted: Labels


def tuned(subject: Subject, arm: str, steps: int, test: Rows) -> Tuned:
    """Train a copy of the encoder with its head on the labelled training images."""
    head = subject.head
    start = (head.weight, head.bias) if arm == "lp_ft" else (0 * head.weight, 0 * head.bias)
    net = finetune.fit(
        copy.deepcopy(subject.encoder),
        start,
        subject.source,
        codes(subject),
        subject.draw(len(subject.rows), "train", labelled=True),
        finetune.Budget(steps),
        subject.seed,
        subject.colour,
    )
    moved = replace(subject, encoder=net.encoder).features(subject.source.take(test))
    weight, bias = (p.detach().cpu().numpy() for p in (net.head.weight, net.head.bias))
    return Tuned(moved, named(subject, moved @ weight.T + bias))


def drift(before: Array, after: Array) -> Array:
    """How far each row (M, D) moved, as a share of the rows' root mean square length: (M,)."""
    length = np.sqrt((before**2).sum(axis=1).mean())
    found: Array = np.linalg.norm(after - before, axis=1) / max(float(length), 1e-12)
    return found


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Accuracy before (``linear``) and after ``cfg.steps`` of both, and what LP-FT gains."""
    if lacking := subject.unlabelled or (OFF if not cfg.steps else ""):
        return Finding(missing=lacking)
    test = subject.draw(TEST, labelled=True)
    labels, before = subject.rows.labels[test], subject.rows.features[test]
    frozen = named(subject, subject.head.logits(before))
    arms = {arm: tuned(subject, arm, cfg.steps, test) for arm in ARMS}
    rows = []
    for name, predicted in {**{k: a.predicted for k, a in arms.items()}, "linear": frozen}.items():
        rows += accuracies(name, predicted, subject, test)
    right = {name: (arm.predicted == labels).astype(float) for name, arm in arms.items()}
    rows.append(subject.average("lp_ft_gain", right["lp_ft"] - right["fine_tune"], test))
    for name, arm in arms.items():
        rows.append(subject.average(f"{name}_drift", drift(before, arm.features), test))
    title = f"After {cfg.steps} steps; linear: before"
    shown = picture(rows, (*ARMS, "linear"), title, "accuracy")
    return Finding(rows, {"fine_tune": shown})
