"""What a verdict says of accuracy beyond one day's labels.

Guesses without labels beside the record of their errors, slices, and the evidence of all labels
of the model together.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import registry
from ..artifacts import read_json
from ..config import Config, Paths
from ..evaluate import _head
from ..harm import _sequence, cbpe
from ..harm._accuracy import Counted, by_slice, of_groups
from ..harm._common import Outputs, estimates, record, suspect
from ._days import features, partition
from ._labelled import DESIGN, Labelled, Outcome

CLUSTERS, PER_CLUSTER = 8, 40
Names = NDArray[np.str_]


def _groups(frame: pd.DataFrame) -> Names:
    """Groups where there are any, else equal contents."""
    own = frame.get("group", pd.Series("", frame.index)).fillna("").astype(str)
    found: Names = own.where(own != "", frame["sha256"].astype(str)).to_numpy(str)
    return found


def known_outputs(reference: pd.DataFrame) -> Outputs:
    """The reference's images of known outcome."""
    known = reference[reference["correct"].notna()]
    right = np.asarray(known["correct"].astype(float), np.float64)
    return Outputs(known["confidence"].to_numpy(np.float64), _groups(known), right)


def outputs(frame: pd.DataFrame) -> Outputs:
    """A day's images."""
    return Outputs(frame["confidence"].to_numpy(np.float64), _groups(frame))


def error_record(paths: Paths, date: str, past: list[Outcome]) -> dict[str, dict[str, Any]]:
    """What the estimators got wrong on labelled days of this model before ``date``.

    Computed from the verdicts on disk and the labels that are there now; nothing is remembered.
    """
    days = []
    for day in past:
        file = partition(paths.monitor, day.date) / "verdict.json"
        if day.date == date or not file.exists():
            continue
        said = (read_json(file).get("estimates") or {}).get("values")
        if said:
            truth = {"truth": day.value, "error": day.error}
            days.append({"date": day.date, "estimates": said, **truth})
    return record(days)


def _classes(
    paths: Paths, model: str, frame: pd.DataFrame, known: Outputs
) -> dict[str, dict[str, Any]] | None:
    """Expected precision and recall by class; None where the registry holds no head."""
    folder = paths.registry / "models" / model
    if not (folder / registry.CARD).exists():
        return None
    head = _head.load(folder)
    shares = head.probabilities(features(frame))
    return cbpe.by_class(cbpe.confusion(known, outputs(frame), shares), head.classes)


def guess(
    cfg: Config,
    paths: Paths,
    date: str,
    model: str,
    frame: pd.DataFrame,
    reference: pd.DataFrame,
    past: list[Outcome],
    drift: bool,
) -> dict[str, Any] | None:
    """Accuracy without labels: ``values`` by estimator, ``disagreement``, ``status`` (suspected
    or not), ``priority`` of a labelling request, ``record`` of past errors and, from CBPE,
    ``by_class``. None without a labelled reference or estimators.
    """
    known = known_outputs(reference)
    if not len(known) or not len(frame) or not cfg.deploy.estimators:
        return None
    seed = int(hashlib.sha256(f"{cfg.seed}:{date}:harm".encode()).hexdigest()[:16], 16)
    values = estimates(known, outputs(frame), cfg.deploy.estimators, seed)
    right = known.correct if known.correct is not None else np.zeros(0)
    return {
        "values": values,
        **suspect(values, float(right.mean()), cfg.deploy.min_drop, drift),
        "reference": float(right.mean()),
        "record": error_record(paths, date, past),
        "by_class": _classes(paths, model, frame, known),
    }


# ---- slices ------------------------------------------------------------------------------------


def clusters(reference: pd.DataFrame, frame: pd.DataFrame) -> tuple[Names, Names]:
    """Nearest of the reference's k-means centres, for both."""
    from sklearn.cluster import KMeans

    x, y = features(reference), features(frame)
    count = min(CLUSTERS, len(x) // PER_CLUSTER)
    if count < 2:
        return np.full(len(x), ""), np.full(len(y), "")
    model = KMeans(count, n_init=4, random_state=0).fit(x)
    return model.labels_.astype(str), model.predict(y).astype(str)


def folder(paths_: pd.Series) -> Names:
    """The first folder of a path within the day, "" without one."""
    found: Names = paths_.map(lambda p: p.partition("/")[0] if "/" in p else "").to_numpy(str)
    return found


def slices(cfg: Config, labelled: Labelled, reference: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy by slice: the class named and the true one, source (a folder within the day, as
    the reference's source), every other column of labels.csv, and reference cluster.
    """
    known = reference[reference["correct"].notna()].reset_index(drop=True)
    frame = labelled.frame
    if not len(known) or not len(frame):
        return []
    theirs, own = clusters(known, frame)
    skip = {"path", "label", "group", "prediction", "confidence", "embedding", "served", "correct"}
    skip |= {"share", "images"}
    extra = [c for c in frame.columns if c not in skip | set(DESIGN)]
    current = {
        "named": frame["prediction"].to_numpy(str),
        "class": frame["label"].to_numpy(str),
        "source": folder(frame["path"]),
        "cluster": own,
        **{c: frame[c].fillna("").to_numpy(str) for c in extra},
    }
    before = {
        "named": known["prediction"].to_numpy(str),
        "class": known["label"].fillna("").to_numpy(str),
        "cluster": theirs,
        **{
            c: known[c].fillna("").to_numpy(str)
            for c in ("source", *extra)
            if c in known and c not in ("named", "class", "cluster")
        },
    }
    right = np.asarray(known["correct"].astype(float), np.float64)
    return by_slice(
        Counted(labelled.column("correct"), labelled.column("group"), labelled.weights(), current),
        Counted(right, _groups(known), np.ones(len(known)), before),
        cfg.deploy.harm_alpha,
        cfg.deploy.min_drop,
    )


# ---- proof over time ---------------------------------------------------------------------------


def normal(reference: pd.DataFrame) -> tuple[float, float] | None:
    """The reference's accuracy and how many independent images tell as much; None unlabelled."""
    known = reference.dropna(subset=["share"])
    if not len(known):
        return None
    return of_groups(known["share"].to_numpy(np.float64), known["images"].to_numpy(np.float64))


def proof(
    cfg: Config, date: str, reference: pd.DataFrame, past: list[Outcome]
) -> dict[str, Any] | None:
    """Evidence of harm from all labels of the model up to ``date``; None without any.

    ``harm``: ``e_value`` has reached ``threshold``; a model that does no harm is ever accused
    with chance at most deploy.harm_alpha, however often and in whatever order labels come. It
    stands on three things: labels do not come because of what they say, images of a group come
    labelled together, and looks come with the days (a look back at an early day holds fewer
    labels than others did). ``low`` and ``high`` bound the day's accuracy at all looks at it.
    """
    known = normal(reference)
    if not past or known is None:
        return None
    (value, count), alpha = known, cfg.deploy.harm_alpha
    error = _sequence.allowed_error(value * count, count, alpha, cfg.deploy.min_drop)
    found = _sequence.evidence([(day.number, day.losses) for day in past], error)
    first = {day.number: day.date for day in past}
    today = [day for day in past if day.date == date]
    low, high = 0.0, 1.0
    if today:
        bound = max(1.0, today[0].weight)
        low, high = _sequence.interval(today[0].losses, alpha, bound)
    return {
        "e_value": found.e_value,
        "threshold": 2 / alpha,
        "harm": found.e_value >= 2 / alpha,
        "since": first[found.since],
        "labels": found.n,
        "days": len(past),
        "least_accuracy": 1 - error,
        "low": low,
        "high": high,
    }


def say(found: dict[str, Any] | None) -> str:
    """The guesses in a sentence, as what they are."""
    if found is None:
        return ""
    parts = ", ".join(f"{name} {v['value']:.1%}" for name, v in found["values"].items())
    hint = "; harm is suspected: ask for labels" if found["status"] == "suspected" else ""
    return f" Guesses without labels, none of them proof: {parts}{hint}."
