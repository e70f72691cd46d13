"""The gate of the ladder: fresh held-out labels must show a gain, the old held-out none lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import embed, gate, models
from ..config import Config
from ..errors import HeadwaterError
from ..evaluate import _common
from ..evaluate._head import Head
from ..reader import ShardReader
from ..registry import Model
from ..shards import DEPLOYMENT
from ..types import Array
from ._common import Candidate, Images, Loss, Text, features

METRICS = ("accuracy", "brier")


@dataclass(frozen=True)
class Evidence:
    """Images that no rung learns from.

    ``fresh``: labelled deployment images of groups kept apart by hash; ``seen``: what the champion
    trained on (sha256, group).
    """

    champion: Model
    fresh: Images
    shards: Path
    seen: pd.DataFrame

    @cached_property
    def reader(self) -> ShardReader:
        """The old held-out split."""
        return ShardReader(self.shards, "test", int(self.champion.meta["image_size"]))

    @cached_property
    def old(self) -> pd.DataFrame:
        """Its labelled rows that the champion did not train on: row, sha256, group, source, label.

        Raises:
            HeadwaterError: there is none.
        """
        frame = self.reader.frame.rename(columns={"key": "sha256"})
        leaked = frame["sha256"].isin(self.seen["sha256"]) | frame["group"].isin(self.seen["group"])
        fair = frame[frame["label"].notna() & ~leaked].reset_index(names="row")
        if not len(fair):
            rule = "hold no labelled image that the champion did not train on"
            raise HeadwaterError("old test images", rule, "run the chain with new held-out groups")
        return fair[["row", "sha256", "group", "source", "label"]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Old rows, then the fresh ones, with ``part``: old, earlier or new."""
        fresh = pd.DataFrame(
            {
                "sha256": self.fresh.sha256,
                "group": self.fresh.groups,
                "source": DEPLOYMENT,
                "label": self.fresh.labels,
                "part": np.where(self.fresh.earlier, "earlier", "new"),
            }
        )
        old = self.old.drop(columns="row").assign(part="old")
        return pd.concat([old, fresh], ignore_index=True)

    def features_of(self, encoder: models.Encoder) -> Array:
        """Features (N, D) of the table's rows."""
        mean, std = tuple(self.champion.meta["mean"]), tuple(self.champion.meta["std"])
        old = embed.compute(encoder, self.reader, mean, std)[self.old["row"].to_numpy()]
        return np.concatenate([old, features(encoder, self.fresh, (mean, std))])

    @cached_property
    def features(self) -> Array:
        """By the champion's encoder."""
        return self.features_of(self.champion.encoder)

    def scored(self, candidate: Candidate, metric: str) -> tuple[pd.DataFrame, Array]:
        """The table with each side's score (``correct``: the candidate's, ``other``) and answer
        (``named``, ``other_named``), and the candidate's features.
        """
        own = self.features if candidate.encoder is None else self.features_of(candidate.encoder)
        label, champion = self.table["label"].to_numpy(str), self.champion.head
        told = self.table.assign(
            correct=score(candidate.head, own, label, metric),
            other=score(champion, self.features, label, metric),
            named=candidate.head.predict(own)[0],
            other_named=champion.predict(self.features)[0],
        )
        return told, own


def score(head: Head, features: Array, labels: Text, metric: str) -> Array:
    """What each answer is worth, (N,) in [0, 1]: right or wrong, or 1 - Brier score / 2.

    A class that the head does not know is an error, as it would be in service.
    """
    p = head.probabilities(features)
    place = {name: i for i, name in enumerate(head.classes)}
    true = np.array([place.get(name, -1) for name in labels], np.int64)
    known = true >= 0
    if metric == "accuracy":
        return np.asarray(known & (p.argmax(1) == true), np.float32)
    own = np.where(known, p[np.arange(len(p)), true], 0)
    # sum over classes of (p - y)^2 = sum p^2 - 2 p_true + 1
    found: Array = (1 - ((p**2).sum(1) - 2 * own + 1) / 2).astype(np.float32)
    return found


def loss(scores: Array, groups: Text, old: Array, old_groups: Text, draws: int, seed: int) -> Loss:
    """Fresh scores beside the old ones: independent samples, both resampled by group."""

    def means(values: Array, names: Text, at: int) -> Any:
        _, code = np.unique(names, return_inverse=True)
        totals = np.stack([np.bincount(code, values), np.bincount(code)], axis=1)  # (G, 2)
        drawn = _common.resample(totals, draws, at)
        return drawn[:, 0] / drawn[:, 1]

    now, reference = float(scores.mean()), float(old.mean())
    few = min(len(set(groups)), len(set(old_groups))) < gate.LEAST
    gap = means(scores, groups, seed) - means(old, old_groups, seed + 1)
    high = 1.0 if few else _common.spread(gap)[1]
    return Loss(now, reference, high, len(scores))


def slices(frame: pd.DataFrame, seen: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Parts with enough groups on which the candidate may not be proven worse.

    A class's part holds its images and all that either side takes for it. Its images alone would
    protect a champion that names a class too often: any better model must name it less.
    """
    new = frame["part"] == "new"
    masks = {f"old:{s}": (frame["source"] == s) & ~new for s in sorted(set(frame["source"][~new]))}
    known = frame["group"].isin(seen["group"])
    masks |= {"new:known groups": new & known, "new:unknown groups": new & ~known}
    said = frame[["label", "named", "other_named"]]
    masks |= {f"class:{c}": (said == c).any(axis=1) for c in sorted(set(frame["label"]))}
    for name, mask in masks.items():
        part = frame[mask]
        if part["group"].nunique() >= gate.LEAST:
            yield name, part


def kinship(a: Array, b: Array) -> float:
    """Linear CKA of features (N, D) and (N, E): 1 if equal up to rotation and scale.

    arXiv 1905.00414. Near 1, an index built with the champion's features may still serve.
    """
    a, b = a - a.mean(0), b - b.mean(0)
    top = np.square(np.linalg.norm(a.T @ b))
    return float(top / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def _reason(
    gain: gate.Slice, old: gate.Slice, harmed: list[str], regained: float, cfg: Config
) -> str:
    margin, found = cfg.repair.old_margin, []
    if not gate.better(gain):
        found.append("no gain is proven")
    if regained < cfg.repair.regain:
        found.append(f"{regained:.0%} of the loss came back, {cfg.repair.regain:.0%} needed")
    if not _spared(old, cfg):
        found.append(f"a loss below {100 * margin:g} points is not proven on the old images")
    if harmed:
        found.append(f"proven worse on {', '.join(harmed)}")
    text = f"fresh {gate.say(gain)}; old {gate.say(old)}"
    return f"{'Refused: ' + '; '.join(found) if found else 'Passed'} ({text})."


def _spared(old: gate.Slice, cfg: Config) -> bool:
    """Whether the old images lose no more than they may."""
    return cfg.repair.old_margin >= 1 or gate.not_inferior(old, cfg.repair.old_margin)


def judge(
    evidence: Evidence, candidate: Candidate, lost: float, level: float, cfg: Config
) -> tuple[Mapping[str, Any], pd.DataFrame, Array]:
    """The verdict with its numbers; the table with both scores; the candidate's features.

    Passed is a candidate that is proven better on the new images (``level`` counts all looks at
    them), wins back ``repair.regain`` of the loss at the point estimate, is proven to lose less
    than ``repair.old_margin`` on the old ones, and is on no slice proven worse by more than
    ``promote.margin``. With an ``old_margin`` of 1 slices hold new images only.
    """
    frame, own = evidence.scored(candidate, cfg.repair.metric)
    rule = cfg.promote
    new = frame[frame["part"] == "new"]
    counted = new if cfg.repair.old_margin >= 1 else frame
    gain = gate.compare(new, rule, level, cfg.seed)
    old = gate.compare(frame[frame["part"] != "new"], rule, rule.level, cfg.seed)
    parts = {
        name: gate.compare(part, rule, rule.level, cfg.seed)
        for name, part in slices(counted, evidence.seen)
    }
    harmed = [name for name, part in parts.items() if gate.worse(part, rule.margin)]
    regained = gain["difference"] / lost if lost else 1.0
    passed = (
        gate.better(gain) and _spared(old, cfg) and regained >= cfg.repair.regain and not harmed
    )
    verdict: dict[str, Any] = {
        "passed": bool(passed),
        "reason": _reason(gain, old, harmed, regained, cfg),
        "gain": gain,
        "old": old,
        "slices": parts,
        "regained": regained,
        "kinship": 1.0 if candidate.encoder is None else kinship(evidence.features, own),
    }
    return verdict, frame, own
