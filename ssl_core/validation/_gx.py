"""What the suites share: rules, their outcomes, and Great Expectations as the judge of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..artifacts import write_json

CRITICAL, WARNING = "critical", "warning"
ROW = "row"  # column by which Great Expectations names the rows it objects to
SHOWN = 3  # examples named in an expectation's detail
RECORD = "expectations.json"  # beside the product that it speaks of


@dataclass(frozen=True)
class Rule:
    """One expectation: its name for people, and the class in ``gx.expectations`` with arguments.

    A critical one stops the chain where it is broken; a warning is only shown.
    """

    name: str
    severity: str
    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one rule of a suite; ``rows`` are the positions that broke it."""

    suite: str
    rule: Rule
    success: bool
    detail: str
    rows: list[int] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As it is stored; a rule about the whole has one thing unexpected, or none."""
        unexpected = len(self.rows) or int(not self.success)
        return {
            "suite": self.suite,
            "name": self.rule.name,
            "severity": self.rule.severity,
            "success": self.success,
            "unexpected": unexpected,
            "detail": self.detail,
        }


def between(
    name: str, column: str, low: float | None, high: float | None, severity: str = WARNING
) -> Rule:
    """Each value of a column lies within limits."""
    limits = {"column": column, "min_value": low, "max_value": high}
    return Rule(name, severity, "ExpectColumnValuesToBeBetween", limits)


def largest(
    name: str, column: str, low: float | None, high: float | None, severity: str = CRITICAL
) -> Rule:
    """The largest value of a column lies within limits: for columns that say one thing of all."""
    limits = {"column": column, "min_value": low, "max_value": high}
    return Rule(name, severity, "ExpectColumnMaxToBeBetween", limits)


def _gx() -> tuple[Any, Any]:
    """Import it (4 to 9 s) without telemetry, settled then; it warns of its own imports."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    return gx, ProgressBarsConfig


def _detail(found: dict[str, Any]) -> str:
    """What was found instead of what was expected."""
    if mismatched := found.get("details", {}).get("mismatched"):
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in mismatched.items())
    value = found.get("observed_value")
    if isinstance(value, int | float):
        return f"found {value:.6g}"
    return "" if found else "could not be computed"


def _outcome(suite: str, rule: Rule, result: dict[str, Any], names: pd.Series) -> Outcome:
    found = result["result"]
    rows = sorted(int(r[ROW]) for r in found.get("unexpected_index_list") or ())
    examples = ", ".join(str(names.iloc[r]) for r in rows[:SHOWN])
    return Outcome(suite, rule, bool(result["success"]), examples or _detail(found), rows)


def check(suite: str, frame: pd.DataFrame, rules: list[Rule], names: str = "path") -> list[Outcome]:
    """Outcomes in the order of ``rules``; ``names`` is the column that examples are named by."""
    gx, bars = _gx()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own use of pandas
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = bars(globally=False)
        asset = context.data_sources.add_pandas(suite).add_dataframe_asset(suite)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
            {"dataframe": frame.assign(**{ROW: np.arange(len(frame))})}
        )
        expected = gx.ExpectationSuite(
            suite,
            expectations=[
                getattr(gx.expectations, rule.kind)(**rule.arguments, meta={"rule": i})
                for i, rule in enumerate(rules)
            ],
        )
        form = {"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]}
        results = batch.validate(expected, result_format=form).to_json_dict()["results"]
    by_rule = {r["expectation_config"]["meta"]["rule"]: r for r in results}
    shown = frame.get(names, pd.Series(dtype="str"))
    return [_outcome(suite, rule, by_rule[i], shown) for i, rule in enumerate(rules)]


def passed(outcomes: Iterable[Outcome]) -> bool:
    """Whether no critical rule is broken."""
    return all(o.success for o in outcomes if o.rule.severity == CRITICAL)


def broken(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many rules are broken, by severity; for the counts of a product."""
    bad = [o.rule.severity for o in outcomes if not o.success]
    return {"failed": bad.count(CRITICAL), "warnings": bad.count(WARNING)}


def write(folder: Path, outcomes: list[Outcome]) -> dict[str, int]:
    """Write expectations.json beside a product; returns the counts of :func:`broken`."""
    records = [o.record() for o in outcomes]
    write_json(folder / RECORD, {"success": passed(outcomes), "expectations": records})
    return broken(outcomes)
