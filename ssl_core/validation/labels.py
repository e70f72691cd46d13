"""The labels: enough of them, sane ones, and class shares like those of the last good version."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..config import Validate
from ._gx import CRITICAL, WARNING, Outcome, Rule, between, check, largest

SUITE = "labels"
# What spreadsheets and programs write where they have no value.
STANDS_FOR_NONE = r"(?i)^(nan|none|null|nil|n/?a|-|--|\?+|unknown|undefined|missing|unlabell?ed)$"
PLAIN = r"^(?! )[^\x00-\x1f\x7f]*[^\x00-\x20\x7f]$"  # no control characters, no blanks around it


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """Images by class, of the labelled ones."""
    found = frame["label"].value_counts().sort_index()
    return {str(k): int(v) for k, v in found.items()}


def drift(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """Total variation between two sets of class shares, less what chance alone makes of it.

    If both were drawn from the pooled shares p, the difference of one class would be normal with
    variance p (1 - p) (1/n + 1/m), and its mean size the root of that times sqrt(2 / pi).
    """
    names = sorted({*before, *now})
    old, new = (np.array([side.get(k, 0) for k in names], np.float64) for side in (before, now))
    n, m = old.sum(), new.sum()
    if not n or not m:
        return 0.0 if n == m else 1.0
    p = (old + new) / (n + m)
    noise = np.sqrt(2 / np.pi * p * (1 - p) * (1 / n + 1 / m)).sum() / 2
    moved = np.abs(new / m - old / n).sum() / 2
    return float(max(0.0, moved - noise))


def whole_rules(limits: Validate, compared: bool) -> list[Rule]:
    """Rules for all labels together; ``compared``: there is an earlier version."""
    k, bare = limits.min_classes, limits.max_unlabelled_share
    rules = [
        Rule(
            f"at least {k} classes",
            CRITICAL,
            "ExpectColumnUniqueValueCountToBeBetween",
            {"column": "label", "min_value": k},
        ),
        largest(f"at most {bare:.1%} of the images are unlabelled", "unlabelled_share", None, bare),
    ]
    if compared:
        worth, most = limits.class_drift, limits.max_class_drift
        name = "of the class shares moved since the last accepted version"
        rules += [
            largest(f"at most {worth:.1%} {name}", "class_drift", None, worth, WARNING),
            largest(f"less than {most:.1%} {name}", "class_drift", None, most),
        ]
    return rules


def class_rules(limits: Validate) -> list[Rule]:
    """Rules for single classes. They only warn: an image with a bad label is a good image."""
    least = limits.min_per_class
    none = {"column": "label", "regex": STANDS_FOR_NONE}
    plain = {"column": "label", "regex": PLAIN}
    return [
        between(f"every class has at least {least} images", "images", least, None),
        Rule(
            "no label stands for a missing one",
            WARNING,
            "ExpectColumnValuesToNotMatchRegex",
            none,
        ),
        Rule("labels are plain text", WARNING, "ExpectColumnValuesToMatchRegex", plain),
        Rule(
            "labels differ in more than case and blanks",
            WARNING,
            "ExpectColumnValuesToBeUnique",
            {"column": "folded"},
        ),
    ]


def by_class(found: Mapping[str, int]) -> pd.DataFrame:
    """One row per class: label, images, and the label without case and blanks."""
    label = pd.Series(list(found), dtype="str")
    return pd.DataFrame(
        {
            "label": label,
            "images": pd.Series(list(found.values()), dtype="int64"),
            "folded": label.str.casefold().str.split().str.join(" "),
        }
    )


def judge(
    frame: pd.DataFrame, limits: Validate, before: Mapping[str, int] | None = None
) -> list[Outcome]:
    """Outcomes for the rows that are left; ``before`` has the images by class of an earlier one."""
    now = counts(frame)
    whole = frame.assign(
        unlabelled_share=frame["label"].isna().mean(),
        class_drift=drift(before, now) if before else 0.0,
    )
    named = frame.dropna(subset=["label"]).groupby("sha256")["label"].nunique()
    contents = named.rename("labels").reset_index()
    one = between("equal images have equal labels", "labels", None, 1)
    found = check(SUITE, whole, whole_rules(limits, bool(before)))
    found += check(SUITE, by_class(now), class_rules(limits), "label")
    found += check(SUITE, contents, [one], "sha256")
    if before:
        kept = by_class({k: now.get(k, 0) for k in before})
        stays = between("no class of the last accepted version is gone", "images", 1, None)
        found += check(SUITE, kept, [stays], "label")
    return found
