"""From contrast to classification on long-tailed labels, beside cross-entropy alone.

Both arms are the method ``supcon_ce`` (arXiv 2103.14267) for the same steps on the same views, from
this encoder and its linear probe on, with class-balanced cross-entropy; one anneals the weight of
the contrast from 1 to 0, the other leaves it at 0. What differs is the contrast.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..augment import Augmenter
from ..config import Analyse
from ..evaluate import _common
from ..job import device
from ..methods import supcon_ce as method
from ..optim import learning_rate, parameter_groups
from ..types import Labels, Task
from ._subject import DRAWS, Finding, Row, Rows, Subject, row
from ._tuning import OFF, TEST, accuracies, codes, named, picture

BATCH, LR, WARMUP, DECAY = 32, 3e-4, 0.1, 0.05  # finetune's
ARMS = {
    "supcon_ce": method.Config(curve="parabolic"),
    "cross_entropy": method.Config(curve="constant", level=0.0),
}
THIRDS = ("rare", "middle", "frequent")


def trained(subject: Subject, cfg: method.Config, steps: int) -> method.Method:
    """A copy of the encoder with projector and classifier, after ``steps`` on training images."""
    torch.manual_seed(subject.seed)
    head, side = subject.head, subject.source.side
    net = method.Method(copy.deepcopy(subject.encoder), cfg, Task(side, steps, len(head.classes)))
    with torch.no_grad():
        net.classifier.weight.copy_(torch.from_numpy(head.weight))
        net.classifier.bias.copy_(torch.from_numpy(head.bias))
    net = net.to(device()).train()
    optimizer = torch.optim.AdamW(parameter_groups(net, DECAY), lr=LR, fused=True)
    augment, rng = Augmenter(net.views, *subject.colour), np.random.default_rng(subject.seed)
    generator = torch.Generator(device()).manual_seed(subject.seed)
    rows, labels = subject.draw(len(subject.rows), "train", labelled=True), codes(subject)
    for step in range(steps):
        drawn = rng.choice(rows, min(BATCH, len(rows)), replace=False)
        views = augment(subject.source.take(drawn).to(device()), generator)
        loss, _ = net(views, step, torch.from_numpy(labels[drawn]).to(device()))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, LR, WARMUP)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 3.0)
        optimizer.step()
    return net.eval()


def predicted(subject: Subject, net: method.Method, test: Rows) -> Labels:
    """What the classifier calls test rows, (M,)."""
    features = replace(subject, encoder=net.encoder).features(subject.source.take(test))
    weight, bias = (p.detach().cpu().numpy() for p in net.classifier.parameters())
    return named(subject, features @ weight.T + bias)


def thirds(train: Labels, test: Labels) -> dict[str, NDArray[np.bool_]]:
    """Test rows (M,) by their class's rank among all classes, by number of training images.

    Thirds exist on any set; fixed counts (``tail:few``) may leave slices empty.
    """
    classes, count = np.unique(train, return_counts=True)
    order = classes[np.argsort(count, kind="stable")]
    parts = np.array_split(order, len(THIRDS))
    return {name: np.isin(test, part) for name, part in zip(THIRDS, parts, strict=True)}


@dataclass(frozen=True)
class Answers:
    """Named classes (M,) of test rows by arm."""

    test: Rows
    by_arm: dict[str, Labels]


def look(subject: Subject, steps: int) -> Answers:
    """Train both arms."""
    test = subject.draw(TEST, labelled=True)
    found = {
        name: predicted(subject, trained(subject, cfg, steps), test) for name, cfg in ARMS.items()
    }
    return Answers(test, found)


def _by_third(subject: Subject, found: Answers) -> list[Row]:
    """Mean recall of the classes of each third, and what the contrast gains on its images."""
    labels, groups = subject.rows.labels[found.test], subject.rows.groups[found.test]
    known, rows = subject.train.labels[subject.train.labels >= 0], []
    right = {name: (p == labels).astype(float) for name, p in found.by_arm.items()}
    gain = right["supcon_ce"] - right["cross_entropy"]
    for third, mask in thirds(known, labels).items():
        where = f"classes:{third}"
        for name, p in found.by_arm.items():
            value, *ends = _common.shares(p[mask], labels[mask], groups[mask], DRAWS)[
                "balanced_accuracy"
            ]
            metric = f"{name}_balanced_accuracy"
            rows.append(row(metric, value, int(mask.sum()), where, (ends[0], ends[1])))
        rows.append(subject.average("contrast_gain", gain[mask], found.test[mask], where))
    return [subject.average("contrast_gain", gain, found.test), *rows]


def run(subject: Subject, cfg: Analyse) -> Finding:
    """Accuracy of both after ``cfg.steps``, overall and by thirds of the classes by frequency."""
    if lacking := subject.unlabelled or (OFF if not cfg.steps else ""):
        return Finding(missing=lacking)
    found, rows = look(subject, cfg.steps), []
    for name, p in found.by_arm.items():
        rows += accuracies(name, p, subject, found.test)
    rows += _by_third(subject, found)
    title = f"Mean recall after {cfg.steps} steps, by class frequency"
    return Finding(rows, {"supcon_ce": picture(rows, tuple(ARMS), title, "balanced_accuracy")})
