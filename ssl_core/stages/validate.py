"""The manifest against the suites manifest and labels, the images against CleanVision.

Single bad rows are quarantined and the chain goes on without them. What is wrong with the data
as a whole fails validation: later stages refuse (``_gate``), and Dagster's check blocks them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from PIL import Image

from .. import bands, images
from ..artifacts import atomic_dir, sha256_file, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..progress import Reporter
from ..validation import labels, manifest
from ..validation._gx import CRITICAL, Outcome, broken, passed
from . import _history
from .ingest import COLUMNS

ISSUES = ("blurry", "dark", "light", "low_information", "odd_aspect_ratio", "odd_size")
SAMPLE = 20_000  # images that CleanVision looks at
SIDE = 128  # longest side it sees them at; it shrinks to 64 by itself to judge blur


# ---- the manifest ------------------------------------------------------------------------------


def judge(
    frame: pd.DataFrame,
    rejected: int,
    cfg: Config,
    now: datetime,
    before: Mapping[str, int] | None = None,
) -> tuple[list[Outcome], pd.DataFrame]:
    """All outcomes of both suites, and what is quarantined.

    ``before`` has the images by class of the last accepted version.
    """
    limits = cfg.validate_
    outcomes, bad = manifest.judge(frame, rejected, tuple(COLUMNS), cfg.data, limits, now)
    if outcomes[0].success:
        good = frame[~frame["path"].isin(bad["path"])].reset_index(drop=True)
        outcomes = [*outcomes, *labels.judge(good, limits, before)]
    return outcomes, bad


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
        "success": passed(outcomes),
        "expectations": [o.record() for o in outcomes],
        "issues": {name: int(issues[name].sum()) for name in ISSUES},
        "counts": counts,
    }


def remember(paths: Paths, content: str, good: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Add this validation to the history."""
    records = summary["expectations"]
    line = {
        "content": content,
        "success": summary["success"],
        "counts": summary["counts"],
        "classes": labels.counts(good) if "label" in good else {},
        "broken": {e["name"]: e["severity"] for e in records if not e["success"]},
    }
    _history.remember(paths.history, line)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write validation/: report.json, quarantine.parquet and issues.parquet; extend the history.

    Failed validation is a result, not an error: the products are written and say so.

    Raises:
        HeadwaterError: there is no manifest, or an image changed since ingest.
    """
    file = paths.manifest / "manifest.parquet"
    if not file.exists():
        raise HeadwaterError(file, "is missing", "run stage ingest first")
    frame, content = pd.read_parquet(file), sha256_file(file)
    rejected = len(pd.read_parquet(paths.manifest / "rejects.parquet"))
    before = _history.accepted(paths.history, content)
    with Reporter("validate") as report, atomic_dir(paths.validation) as out:
        outcomes, bad = judge(frame, rejected, cfg, datetime.now(UTC), before.get("classes"))
        ready = outcomes[0].success
        good = frame[~frame["path"].isin(bad["path"])] if ready else frame.iloc[:0]
        issues = find_issues(sample(good, SAMPLE), paths.root, report, cfg.data.channels)
        counts = {
            "images": len(frame),
            "rejected": rejected,
            "quarantined": len(bad),
            "examined": len(issues),
            **broken(outcomes),
        }
        summary = summarise(outcomes, issues, counts)
        write_json(out / "report.json", summary)
        bad.to_parquet(out / "quarantine.parquet", engine="pyarrow", index=False)
        issues.to_parquet(out / "issues.parquet", engine="pyarrow", index=False)
        write_lineage(out, "validate", config_of(cfg), {"manifest": paths.manifest}, counts)
        report.log(sentence(summary), **counts)
    remember(paths, content, good, summary)
    return {"success": summary["success"]} | counts | {"issues": summary["issues"]}
