"""The manifest against the suites manifest and labels, the images against CleanVision.

Single bad rows are quarantined and the chain goes on without them. What is wrong with the data
as a whole fails validation: later stages refuse (``_gate``), and Dagster's check blocks them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from .. import bands, engine, images
from ..artifacts import atomic_dir, atomic_file, sha256_file, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..progress import Reporter
from ..validation import labels, manifest
from ..validation._gx import CRITICAL, Outcome, broken, passed
from . import _history
from .ingest import COLUMNS

ISSUES = ("blurry", "dark", "light", "low_information", "odd_aspect_ratio", "odd_size")
SAMPLE = 20_000  # images that CleanVision looks at
BRIGHT = (1, 5, 10, 15, 90, 95, 99)  # percentiles
MEASURED = (
    "brightness",
    *(f"brightness_perc_{p}" for p in BRIGHT),
    "entropy",
    "blurriness",
    "blurriness_grayscale_std",
)
RULES = 1  # raise it when measure() would find other values
CHUNK = 128  # images that go to Ray together
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
    """What CleanVision takes for a dataset. It asks for their number and the form of the first."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Image.Image]:
        return (Image.new("RGB", (1, 1)),)  # never looked at: all that is measured is known


def picture(ref: str, root: Path, channels: int) -> Image.Image:
    """A small picture; of other channels than three ``bands.to_rgb``.

    Raises:
        HeadwaterError: it changed since ingest.
    """
    try:
        data = images.read_bytes(ref, root)
        pixels = bands.to_rgb(images.decode(data, SIDE, channels=channels))
    except images.Reject as reject:
        rule = f"was readable at ingest and is not now ({reject})"
        raise HeadwaterError(ref, rule, "run stage ingest again") from reject
    return Image.fromarray(np.ascontiguousarray(pixels))


@cache
def _properties() -> tuple[Any, ...]:
    """CleanVision's measures of a single image (4 s to import)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanvision.issue_managers import image_property as p
    return p.BrightnessProperty("dark"), p.EntropyProperty(), p.BlurrinessProperty()


def measure(root: Path, channels: int, ref: str) -> list[float]:
    """``MEASURED`` of one image; runs wherever the work is done."""
    image, found = picture(ref, root, channels), dict[str, float]()
    for kind in _properties():
        found |= kind.calculate(image)
    return [float(found[name]) for name in MEASURED]


def measured(frame: pd.DataFrame, cfg: Config, paths: Paths, report: Reporter) -> pd.DataFrame:
    """``MEASURED`` of all rows; only content that was not seen before is measured."""
    file = paths.runs / f"image-properties-{cfg.data.channels}.parquet"
    try:
        known = pd.read_parquet(file)[["sha256", "rules", *MEASURED]]
        known = known[known["rules"] == RULES].drop(columns="rules").set_index("sha256")
    except Exception:  # a cache may only save time
        known = pd.DataFrame(columns=list(MEASURED), dtype=np.float64)
    new = frame[~frame["sha256"].isin(known.index)].drop_duplicates("sha256")
    work = partial(measure, paths.root.absolute(), cfg.data.channels)
    ahead, rows = 32 * (os.cpu_count() or 1), []
    with report.bar(len(new), "img") as advance:
        for row in engine.each(work, new["path"].tolist(), cfg.scale, ahead, CHUNK):
            rows.append(row)
            advance()
    made = pd.DataFrame(rows, new["sha256"], list(MEASURED), dtype=np.float64)
    found = (made if known.empty else pd.concat([known, made])).loc[frame["sha256"]]
    kept = found[~found.index.duplicated()].rename_axis("sha256").reset_index()
    with atomic_file(file) as temp:
        kept.assign(rules=RULES).to_parquet(temp, engine="pyarrow", index=False)
    report.log(f"{len(new)} of {len(frame)} images measured", measured=len(new))
    return found.reset_index(drop=True)


def sample(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most ``count`` rows, chosen by sha256 and so without regard to anything else."""
    if not len(frame):
        return frame
    chosen = frame.sort_values(["sha256", "path"]).head(count)
    return chosen.sort_values("path", ignore_index=True)


def _imagelab(values: pd.DataFrame, frame: pd.DataFrame) -> Any:
    """CleanVision's lab; size and shape are those of the files, not as shrunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanvision import Imagelab
    lab = Imagelab(torchvision_dataset=_Pictures(len(frame)), verbose=False)
    width, height = frame["width"].astype(float), frame["height"].astype(float)
    # What stands in ``info`` counts as computed before.
    lab.info["dark"] = values
    lab.info["odd_size"] = pd.DataFrame({"size": np.sqrt(width * height)})
    ratio = np.minimum(width / height, height / width)
    lab.info["odd_aspect_ratio"] = pd.DataFrame({"aspect_ratio": ratio})
    return lab


def find_issues(frame: pd.DataFrame, cfg: Config, paths: Paths, report: Reporter) -> pd.DataFrame:
    """path, sha256 and a column of booleans for each of ``ISSUES``.

    Raises:
        HeadwaterError: an image changed since ingest.
    """
    if not len(frame):
        return no_issues()
    lab = _imagelab(measured(frame, cfg, paths, report), frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
        issues = find_issues(sample(good, SAMPLE), cfg, paths, report)
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
