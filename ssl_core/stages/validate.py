"""The manifest against stated expectations (Great Expectations), the images against CleanVision.

Single bad rows are quarantined and the chain goes on without them. What is wrong with the data
as a whole fails validation: later stages refuse (``_gate``), and Dagster's check blocks them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from PIL import Image

from .. import bands, images
from ..artifacts import atomic_dir, write_json, write_lineage
from ..config import Config, Data, Paths, Validate
from ..errors import HeadwaterError
from ..progress import Reporter
from .ingest import COLUMNS

CRITICAL, WARNING = "critical", "warning"
REQUIRED = ("path", "sha256", "phash", "group", "source")
ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?([+-]\d{2}:\d{2}|Z)?)?$"
ISSUES = ("blurry", "dark", "light", "low_information", "odd_aspect_ratio", "odd_size")
SAMPLE = 20_000  # images that CleanVision looks at
SIDE = 128  # longest side it sees them at; it shrinks to 64 by itself to judge blur
ROW = "row"  # column by which Great Expectations names the rows it objects to
SHOWN = 3  # examples named in an expectation's detail


@dataclass(frozen=True)
class Rule:
    """One expectation: its name for people, and the class in ``gx.expectations`` with arguments."""

    name: str
    severity: str
    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one rule; ``rows`` are the positions that failed it."""

    rule: Rule
    success: bool
    detail: str
    rows: list[int] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As it stands in report.json; a rule about the whole has one thing unexpected, or none."""
        unexpected = len(self.rows) or int(not self.success)
        return {
            "name": self.rule.name,
            "severity": self.rule.severity,
            "success": self.success,
            "unexpected": unexpected,
            "detail": self.detail,
        }


# ---- the suite ---------------------------------------------------------------------------------


def _between(name: str, column: str, low: float | None, high: float | None) -> Rule:
    limits = {"column": column, "min_value": low, "max_value": high}
    return Rule(name, WARNING, "ExpectColumnValuesToBeBetween", limits)


def schema_rules() -> list[Rule]:
    """What all other rules rest on."""
    columns = {"column_set": [*COLUMNS, ROW], "exact_match": True}
    return [Rule("the manifest has its columns", CRITICAL, "ExpectTableColumnsToMatchSet", columns)]


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
        _between(f"width is at least {data.min_side} pixels", "width", data.min_side, None),
        _between(f"height is at least {data.min_side} pixels", "height", data.min_side, None),
        _between(f"area is at most {data.max_pixels:,} pixels", "area", None, data.max_pixels),
    ]


def date_rules() -> list[Rule]:
    """Rules whose violation is only worth a look. A day's grace is for time zones."""
    iso = {"column": "captured_at", "regex": ISO}
    return [
        Rule("captured_at is an ISO 8601 date", WARNING, "ExpectColumnValuesToMatchRegex", iso),
        _between("captured_at is not in the future", "days_ahead", None, 1),
    ]


def whole_rules(limits: Validate) -> list[Rule]:
    """Rules for the data as a whole, without quarantined rows; breaking one stops the chain."""
    n, k = limits.min_images, limits.min_classes
    reject, bare = limits.max_reject_share, limits.max_unlabelled_share
    column_max = "ExpectColumnMaxToBeBetween"
    return [
        Rule(f"at least {n} images", CRITICAL, "ExpectTableRowCountToBeBetween", {"min_value": n}),
        Rule(
            f"at least {k} classes",
            CRITICAL,
            "ExpectColumnUniqueValueCountToBeBetween",
            {"column": "label", "min_value": k},
        ),
        Rule(
            f"at most {bare:.1%} of the images are unlabelled",
            CRITICAL,
            column_max,
            {"column": "unlabelled_share", "max_value": bare},
        ),
        Rule(
            f"at most {reject:.1%} of the files are rejected or quarantined",
            CRITICAL,
            column_max,
            {"column": "reject_share", "max_value": reject},
        ),
    ]


# ---- Great Expectations ------------------------------------------------------------------------


def _gx() -> tuple[Any, Any]:
    """Import it (9 s) without telemetry, which it settles then; it warns of its own imports."""
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


def _outcome(rule: Rule, result: dict[str, Any], names: pd.Series) -> Outcome:
    found = result["result"]
    rows = sorted(int(r[ROW]) for r in found.get("unexpected_index_list") or ())
    examples = ", ".join(str(names.iloc[r]) for r in rows[:SHOWN])
    return Outcome(rule, bool(result["success"]), examples or _detail(found), rows)


def check(frame: pd.DataFrame, rules: list[Rule]) -> list[Outcome]:
    """Outcomes in the order of ``rules``."""
    gx, bars = _gx()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own use of pandas
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = bars(globally=False)
        asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("manifest")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
            {"dataframe": frame.assign(**{ROW: np.arange(len(frame))})}
        )
        suite = gx.ExpectationSuite(
            "manifest",
            expectations=[
                getattr(gx.expectations, rule.kind)(**rule.arguments, meta={"rule": i})
                for i, rule in enumerate(rules)
            ],
        )
        form = {"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]}
        results = batch.validate(suite, result_format=form).to_json_dict()["results"]
    by_rule = {r["expectation_config"]["meta"]["rule"]: r for r in results}
    names = frame.get("path", pd.Series(dtype="str"))
    return [_outcome(rule, by_rule[i], names) for i, rule in enumerate(rules)]


# ---- the manifest ------------------------------------------------------------------------------


def with_derived(frame: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Add ``area`` and ``days_ahead`` (of now; null where there is no date)."""
    when = pd.to_datetime(frame["captured_at"], errors="coerce", utc=True, format="ISO8601")
    return frame.assign(
        area=frame["width"] * frame["height"],
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
    frame: pd.DataFrame, rejected: int, cfg: Config, now: datetime
) -> tuple[list[Outcome], pd.DataFrame]:
    """All outcomes, and what is quarantined."""
    outcomes = check(frame, schema_rules())
    none = pd.DataFrame({"path": [], "reason": []}, dtype="str")
    if not outcomes[0].success:  # the other rules would only say so again
        return outcomes, none
    full = with_derived(frame, now)
    by_row = check(full, row_rules(cfg.data))
    bad = quarantine(frame, by_row)
    good = full[~full["path"].isin(bad["path"])]
    lost = len(full) - len(good) + rejected
    good = good.assign(
        reject_share=lost / max(1, len(full) + rejected),
        unlabelled_share=good["label"].isna().mean(),
    ).reset_index(drop=True)
    dates = check(good, date_rules())
    return [*outcomes, *check(good, whole_rules(cfg.validate_)), *by_row, *dates], bad


# ---- the images --------------------------------------------------------------------------------


class _Pictures:
    """What CleanVision takes for a torchvision dataset: small pictures, decoded when asked for.

    Of other channels than three it sees ``bands.to_rgb``.
    """

    def __init__(self, refs: list[str], root: Path, channels: int) -> None:
        self.refs, self.root, self.channels = refs, root, channels
        self.advance: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, place: int) -> tuple[Image.Image]:
        ref = self.refs[place]
        try:
            data = images.read_bytes(ref, self.root)
            pixels = bands.to_rgb(images.decode(data, SIDE, channels=self.channels))
        except images.Reject as reject:
            rule = f"was readable at ingest and is not now ({reject})"
            raise HeadwaterError(ref, rule, "run stage ingest again") from reject
        if self.advance:
            self.advance()
        return (Image.fromarray(np.ascontiguousarray(pixels)),)


def sample(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most ``count`` rows, chosen by sha256 and so without regard to anything else."""
    if not len(frame):
        return frame
    chosen = frame.sort_values(["sha256", "path"]).head(count)
    return chosen.sort_values("path", ignore_index=True)


def _imagelab(pictures: _Pictures, frame: pd.DataFrame) -> Any:
    """CleanVision's lab (4 s to import); size and shape are those of the files, not as shrunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanvision import Imagelab
    lab = Imagelab(torchvision_dataset=pictures, verbose=False)
    width, height = frame["width"].astype(float), frame["height"].astype(float)
    # What stands in ``info`` counts as computed before.
    lab.info["odd_size"] = pd.DataFrame({"size": np.sqrt(width * height)})
    ratio = np.minimum(width / height, height / width)
    lab.info["odd_aspect_ratio"] = pd.DataFrame({"aspect_ratio": ratio})
    return lab


def find_issues(
    frame: pd.DataFrame, root: Path, report: Reporter, channels: int = 3
) -> pd.DataFrame:
    """path, sha256 and a column of booleans for each of ``ISSUES``.

    Raises:
        HeadwaterError: an image changed since ingest.
    """
    if not len(frame):
        return no_issues()
    pictures = _Pictures(frame["path"].tolist(), root, channels)
    lab = _imagelab(pictures, frame)
    manager = "cleanvision.issue_managers.image_property_issue_manager"
    with report.bar(len(frame), "img") as pictures.advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its own bar cannot be switched off, and ours goes to the sinks as well.
        with mock.patch(f"{manager}.tqdm", lambda steps, **_: steps):
            lab.find_issues({name: {} for name in ISSUES}, n_jobs=1, verbose=False)
    flags = {n: lab.issues[f"is_{n}_issue"].fillna(False).to_numpy(dtype=bool) for n in ISSUES}
    return frame[["path", "sha256"]].assign(**flags)


# ---- the stage ---------------------------------------------------------------------------------


def no_issues() -> pd.DataFrame:
    """issues.parquet without a row."""
    texts = pd.DataFrame({"path": [], "sha256": []}, dtype="str")
    return texts.assign(**{name: pd.Series(dtype=bool) for name in ISSUES})


def config_of(cfg: Config) -> dict[str, Any]:
    """The settings that this stage depends on."""
    data = cfg.section("data")
    return cfg.section("validate") | {k: data[k] for k in ("min_side", "max_pixels", "channels")}


def sentence(summary: dict[str, Any]) -> str:
    """The result for people."""
    counts = summary["counts"]
    failed = [
        f"{e['name']} ({e['detail']})"
        for e in summary["expectations"]
        if not e["success"] and e["severity"] == CRITICAL
    ]
    flagged = ", ".join(f"{n} {name}" for name, n in summary["issues"].items() if n)
    verdict = f"FAILED: {'; '.join(failed)}" if failed else "passed"
    return (
        f"{verdict}; {counts['images']} images, {counts['quarantined']} quarantined, "
        f"{counts['examined']} looked at: {flagged or 'no issue'}"
    )


def summarise(outcomes: list[Outcome], issues: pd.DataFrame, counts: dict[str, Any]) -> Any:
    """report.json."""
    return {
        "success": all(o.success for o in outcomes if o.rule.severity == CRITICAL),
        "expectations": [o.record() for o in outcomes],
        "issues": {name: int(issues[name].sum()) for name in ISSUES},
        "counts": counts,
    }


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write validation/: report.json, quarantine.parquet and issues.parquet.

    Failed validation is a result, not an error: the products are written and say so.

    Raises:
        HeadwaterError: there is no manifest, or an image changed since ingest.
    """
    file = paths.manifest / "manifest.parquet"
    if not file.exists():
        raise HeadwaterError(file, "is missing", "run stage ingest first")
    frame = pd.read_parquet(file)
    rejected = len(pd.read_parquet(paths.manifest / "rejects.parquet"))
    with Reporter("validate") as report, atomic_dir(paths.validation) as out:
        outcomes, bad = judge(frame, rejected, cfg, datetime.now(UTC))
        ready = outcomes[0].success
        good = frame[~frame["path"].isin(bad["path"])] if ready else frame.iloc[:0]
        issues = find_issues(sample(good, SAMPLE), paths.root, report, cfg.data.channels)
        counts = {
            "images": len(frame),
            "rejected": rejected,
            "quarantined": len(bad),
            "examined": len(issues),
            "failed": sum(not o.success for o in outcomes if o.rule.severity == CRITICAL),
            "warnings": sum(not o.success for o in outcomes if o.rule.severity == WARNING),
        }
        summary = summarise(outcomes, issues, counts)
        write_json(out / "report.json", summary)
        bad.to_parquet(out / "quarantine.parquet", engine="pyarrow", index=False)
        issues.to_parquet(out / "issues.parquet", engine="pyarrow", index=False)
        write_lineage(out, "validate", config_of(cfg), {"manifest": paths.manifest}, counts)
        report.log(sentence(summary), **counts)
    return {"success": summary["success"]} | counts | {"issues": summary["issues"]}
