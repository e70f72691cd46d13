"""Ask for the labels that tell most about a day, and take them in when they come."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..artifacts import atomic_dir, atomic_file, read_json, sha256_file, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..evaluate import _head
from ..harm import cbpe
from ..harm._common import outcomes
from ..harm._request import Plan, plan
from ..progress import Reporter
from ..report import sheet
from ._days import (
    LOG,
    labels_file,
    partition,
    read_labels,
    read_predictions,
    read_reference,
    reference_file,
    relative,
)
from ._estimates import known_outputs
from ._labelled import SAMPLE, requests

REQUEST, SHEET = "request.json", "sheet.html"
COLUMNS = ["path", "label", "inclusion", "stratum"]


def candidates(cfg: Config, paths: Paths, date: str) -> pd.DataFrame:
    """Images of the day without a label, each content once, in order of their names."""
    frame, _ = read_predictions(paths, date)
    frame = frame.assign(ref=frame["path"], path=relative(frame["path"], cfg, date))
    labels = read_labels(cfg, paths, date)
    if labels is not None:
        known = frame["path"].isin(labels.loc[labels["label"] != "", "path"])
        frame = frame[~frame["sha256"].isin(frame.loc[known, "sha256"])]
    return frame.sort_values("path").drop_duplicates("sha256").reset_index(drop=True)


def refuse_loss(cfg: Config, paths: Paths, date: str) -> None:
    """Refuse to replace a request of which labels are in: their chances would be forgotten.

    Raises:
        HeadwaterError: there are such labels.
    """
    file, labels = requests(paths, date) / SAMPLE, read_labels(cfg, paths, date)
    if not file.exists() or labels is None or "inclusion" not in labels:
        return
    asked = set(pd.read_csv(file, dtype=str)["path"])
    back = labels[(labels["inclusion"] != "") & (labels["label"] != "")]["path"]
    if count := int(back.isin(asked).sum()):
        rule = f"is answered in part: {count} of {len(asked)} labels are in"
        fix = f"label the rest of {file.parent / SHEET}, or ask about another day"
        raise HeadwaterError(f"the request for {date}", rule, fix)


def choose(cfg: Config, paths: Paths, frame: pd.DataFrame, date: str, count: int) -> Plan:
    """The plan for images ``frame``, from the reference's calibration.

    Raises:
        HeadwaterError: no more images than labels, or a reference without known outcomes.
    """
    if not len(frame):
        raise HeadwaterError(date, "has no image without a label", "ask about another day")
    known = known_outputs(read_reference(paths, str(frame["model"].iloc[0])))
    curve = cbpe.calibrate(known.confidence, outcomes(known))
    error = 1 - curve(frame["confidence"].to_numpy(np.float64))
    seed = int(hashlib.sha256(f"{cfg.seed}:{date}:labels".encode()).hexdigest()[:16], 16)
    return plan(error, count, np.random.default_rng(seed))


def drawn(frame: pd.DataFrame, found: Plan) -> pd.DataFrame:
    """The images to label, in a random order that says nothing about the strata."""
    table = frame.assign(
        stratum=[str(s) for s in found.stratum],
        inclusion=[f"{p:.9g}" for p in found.inclusion],
        weight=[f"{1 / p:.9g}" for p in found.inclusion],
    ).iloc[found.chosen]
    return table.sort_values("sha256").reset_index(drop=True)


def classes(paths: Paths, model: str, frame: pd.DataFrame) -> list[str]:
    """Names to choose from: the head's, else those that were predicted."""
    file = paths.registry / "models" / model / _head.META
    known = read_json(file)["classes"] if file.exists() else frame["prediction"].unique()
    return sorted(str(c) for c in known)


def ask(cfg: Config, paths: Paths, date: str, count: int) -> dict[str, Any]:
    """Write requests/date=<date>/ with sheet.html, sample.csv and request.json.

    Raises:
        HeadwaterError: see :func:`run`.
    """
    refuse_loss(cfg, paths, date)
    frame = candidates(cfg, paths, date)
    found = choose(cfg, paths, frame, date, count)
    table, model = drawn(frame, found), str(frame["model"].iloc[0])
    about = {
        "date": date,
        "model": model,
        "labels": len(table),
        "images": len(frame),
        "strata": len(np.unique(found.stratum)),
        "expected_width": found.width,
        "expected_width_uniform": found.uniform_width,
    }
    sources = {
        "predictions": partition(paths.predictions, date) / LOG,
        "reference": reference_file(paths, model),
    }
    with Reporter("request_labels") as report, atomic_dir(requests(paths, date)) as out:
        columns = ["path", "prediction", "confidence", "stratum", "inclusion", "weight"]
        table[columns].to_csv(out / SAMPLE, index=False, lineterminator="\n")
        names = classes(paths, model, frame)
        rows = [{str(k): v for k, v in r.items()} for r in table.to_dict("records")]
        page = sheet.render(date, rows, names, paths.root)
        (out / SHEET).write_text(page)
        write_json(out / REQUEST, about)
        settings = {"date": date, "count": count, "seed": cfg.seed}
        write_lineage(out, "request_labels", settings, sources, {"labels": len(table)})
        place = (requests(paths, date) / SHEET).as_posix()
        report.log(
            f"{date}: {len(table)} of {len(frame)} images to label in {place}; 95% interval of "
            f"about {found.width:.1%} (drawn alike: {found.uniform_width:.1%})"
        )
    return {**about, "sheet": place}


# ---- taking labels in --------------------------------------------------------------------------


def returned(cfg: Config, paths: Paths, date: str, file: Path) -> pd.DataFrame:
    """A filled-in sheet: path, label, inclusion, stratum, of images that were asked for.

    Chances and strata are taken from the request and not from the file.

    Raises:
        HeadwaterError: no request, no such file, other images, or two labels for one.
    """
    asked = requests(paths, date) / SAMPLE
    if not asked.exists():
        fix = f"run `headwater request-labels {date}` first"
        raise HeadwaterError(f"{date}", "has no labelling request", fix)
    if not file.is_file():
        raise HeadwaterError(file, "is no file", "name the CSV that the sheet's button saved")
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    if not {"path", "label"} <= set(frame.columns):
        rule = f"has columns {', '.join(frame.columns)}"
        raise HeadwaterError(file, rule, "it needs path and label")
    frame = frame.assign(path=relative(frame["path"], cfg, date), label=frame["label"].str.strip())
    frame = frame.loc[frame["label"] != "", ["path", "label"]].drop_duplicates()
    table = pd.read_csv(asked, dtype=str, keep_default_na=False).set_index("path")
    strange = frame.loc[~frame["path"].isin(table.index), "path"]
    twice = frame.loc[frame["path"].duplicated(), "path"]
    if len(strange):
        rule = f"was not asked for ({date})"
        raise HeadwaterError(strange.iloc[0], rule, "give the file of this day's request")
    if len(twice):
        raise HeadwaterError(file, f"gives {twice.iloc[0]} more than one label", "keep one")
    extra = table.loc[frame["path"], ["inclusion", "stratum"]].reset_index(drop=True)
    return pd.concat([frame.reset_index(drop=True), extra], axis=1)


def take(cfg: Config, paths: Paths, date: str, file: Path) -> dict[str, Any]:
    """Add a filled-in sheet to deploy.labels/<date>.csv; doing it twice changes nothing.

    Raises:
        HeadwaterError: see :func:`returned`; or a label that contradicts one that is there.
    """
    new = returned(cfg, paths, date, file)
    target = labels_file(cfg, paths, date)
    old = read_labels(cfg, paths, date)
    if old is not None:
        known = old[old["label"] != ""].set_index("path")["label"]
        other = new[new["path"].isin(known.index)]
        clash = other[known.reindex(other["path"]).to_numpy() != other["label"].to_numpy()]
        if len(clash):
            path = clash["path"].iloc[0]
            rule = f"is '{known[path]}' in {target} and '{clash['label'].iloc[0]}' in {file}"
            raise HeadwaterError(path, rule, "correct one of them")
        added = new[~new["path"].isin(known.index)]
        old = old[~old["path"].isin(added["path"])]  # rows without a label give way
        merged = pd.concat([old, added], ignore_index=True).fillna("")
    else:
        added = merged = new
    merged = merged.sort_values("path")
    with atomic_file(target) as temp:
        merged.to_csv(temp, index=False, lineterminator="\n")
    return {
        "added": len(added),
        "labels": int((merged["label"] != "").sum()),
        "file": target.as_posix(),
        "sha256": sha256_file(target),
    }


def run(
    cfg: Config, paths: Paths, date: str, count: int = 100, filled: Path | None = None
) -> dict[str, Any]:
    """Ask for ``count`` labels of one day, or take in a ``filled`` sheet.

    Raises:
        HeadwaterError: no predictions for this day, no more unlabelled images than ``count``, a
            request that is answered in part, or a sheet that does not fit its request.
    """
    partition(paths.predictions, date)  # refuses what is not a day
    return ask(cfg, paths, date, count) if filled is None else take(cfg, paths, date, filled)
