"""The manifest: its columns, single rows (quarantined where bad), dates, and how much is left."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pandas as pd

from ..config import Data, Validate
from ._gx import CRITICAL, ROW, WARNING, Outcome, Rule, between, check, largest

SUITE = "manifest"
REQUIRED = ("path", "sha256", "phash", "group", "source")
ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?([+-]\d{2}:\d{2}|Z)?)?$"
EPOCHS = ["1904-01-01", "1970-01-01", "1980-01-01", "1980-01-06"]  # clocks that were never set


def schema_rules(columns: tuple[str, ...]) -> list[Rule]:
    """What all other rules rest on."""
    expected: dict[str, Any] = {"column_set": [*columns, ROW], "exact_match": True}
    kind = "ExpectTableColumnsToMatchSet"
    return [Rule("the manifest has its columns", CRITICAL, kind, expected)]


def row_rules(data: Data) -> list[Rule]:
    """Rules for single rows; a row that breaks one is quarantined."""
    present = [
        Rule(f"{c} is present", WARNING, "ExpectColumnValuesToNotBeNull", {"column": c})
        for c in REQUIRED
    ]
    shapes = [
        Rule(
            f"{c} is {n} hex digits",
            WARNING,
            "ExpectColumnValuesToMatchRegex",
            {"column": c, "regex": f"^[0-9a-f]{{{n}}}$"},
        )
        for c, n in (("sha256", 64), ("phash", 16))
    ]
    unique = Rule("path is unique", WARNING, "ExpectColumnValuesToBeUnique", {"column": "path"})
    return [
        *present,
        *shapes,
        unique,
        between(f"width is at least {data.min_side} pixels", "width", data.min_side, None),
        between(f"height is at least {data.min_side} pixels", "height", data.min_side, None),
        between(f"area is at most {data.max_pixels:,} pixels", "area", None, data.max_pixels),
    ]


def date_rules() -> list[Rule]:
    """Rules whose violation is only worth a look. A day's grace is for time zones."""
    iso = {"column": "captured_at", "regex": ISO}
    unset = {"column": "captured_on", "value_set": EPOCHS}
    return [
        Rule("captured_at is an ISO 8601 date", WARNING, "ExpectColumnValuesToMatchRegex", iso),
        between("captured_at is not in the future", "days_ahead", None, 1),
        Rule(
            "captured_at is not the day zero of a clock that was never set",
            WARNING,
            "ExpectColumnValuesToNotBeInSet",
            unset,
        ),
    ]


def whole_rules(limits: Validate) -> list[Rule]:
    """Rules for what is left without quarantined rows; breaking one stops the chain."""
    n, reject = limits.min_images, limits.max_reject_share
    return [
        Rule(f"at least {n} images", CRITICAL, "ExpectTableRowCountToBeBetween", {"min_value": n}),
        largest(
            f"at most {reject:.1%} of the files are rejected or quarantined",
            "reject_share",
            None,
            reject,
        ),
    ]


def with_derived(frame: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Add ``area``, ``captured_on`` (its day) and ``days_ahead`` (of now); null without a date."""
    when = pd.to_datetime(frame["captured_at"], errors="coerce", utc=True, format="ISO8601")
    return frame.assign(
        area=frame["width"] * frame["height"],
        captured_on=frame["captured_at"].str.slice(0, 10),
        days_ahead=(when - pd.Timestamp(now)) / pd.Timedelta(days=1),
    )


def quarantine(frame: pd.DataFrame, outcomes: list[Outcome]) -> pd.DataFrame:
    """path and reason of every row that broke a rule; the first rule it broke is the reason."""
    first: dict[int, str] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            first.setdefault(row, f"not so: {outcome.rule.name}")
    rows = sorted(first)
    bad = pd.DataFrame({"path": frame["path"].iloc[rows], "reason": [first[r] for r in rows]})
    return bad.astype("str").reset_index(drop=True)


def judge(
    frame: pd.DataFrame,
    rejected: int,
    columns: tuple[str, ...],
    data: Data,
    limits: Validate,
    now: datetime,
) -> tuple[list[Outcome], pd.DataFrame]:
    """All outcomes, and what is quarantined; with wrong columns only that, and nothing else."""
    schema = check(SUITE, frame, schema_rules(columns))
    if not schema[0].success:  # the other rules would only say so again
        return schema, pd.DataFrame({"path": [], "reason": []}, dtype="str")
    full = with_derived(frame, now)
    by_row = check(SUITE, full, row_rules(data))
    bad = quarantine(frame, by_row)
    good = full[~full["path"].isin(bad["path"])]
    lost = len(full) - len(good) + rejected
    share = lost / max(1, len(full) + rejected)
    good = good.assign(reject_share=share).reset_index(drop=True)
    rest = check(SUITE, good, [*whole_rules(limits), *date_rules()])
    return [*schema, *rest[:2], *by_row, *rest[2:]], bad
