"""Contrast, masking, or both: what each teaches, side by side (arXiv 2305.00729).

Attention, frequencies and probes by layer, and accuracy by nearest neighbours, linear probe and
fine-tuning, of methods of both families and their combination at equal compute.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import embed
from ..analyse import _tokens, attention, fourier, layerwise
from ..analyse._subject import Subject
from ..config import Config, Paths
from ..config import Study as Settings
from ..errors import HeadwaterError
from ..evaluate import knn, linear
from ..stages import _trained
from ..stages.seeds import Images
from . import _charts, _common, _lab
from ._common import Claim, Study

RULES = 1  # raise it when a row would be measured differently
PAPER = "arXiv 2305.00729"
CONTRAST, MASKED, BOTH, NONE = "contrast", "masked", "both", "untrained"
IMAGES = 256  # that attention and frequencies are looked at on
BY_LAYER = {
    "attention_distance": "attention distance (px)",
    "attention_nmi": "attention NMI",
    "amplitude": "high frequencies (log)",
    "layer_linear": "linear probe",
    "layer_knn": "kNN",
}
MEASURES = ["knn", "linear", "fine_tune"]


def arms(s: Settings) -> dict[str, str]:
    """Method -> family."""
    families = {CONTRAST: s.contrast, MASKED: s.masked, BOTH: s.both}
    return {method: family for family, names in families.items() for method in names}


def run(cfg: Config, paths: Paths, quick: bool = False) -> Study:
    """Train all arms on every set and look inside.

    Raises:
        HeadwaterError: a set that is not there, or a backbone without attention.
    """
    rows = []
    with _lab.opened("cl-vs-mim", cfg, paths, quick) as lab:
        if not _tokens.has_attention(_trained.untrained(lab.cfg, 0)):
            rule = _tokens.NO_ATTENTION
            raise HeadwaterError(f"bench.backbone '{cfg.bench.backbone}'", rule, "choose a vit_*")
        chosen = arms(cfg.study)
        if quick:  # the first method of each family
            first = {family: method for method, family in reversed(chosen.items())}
            chosen = {method: family for family, method in first.items()}
        for set_, folder in lab.sets():
            whole = _lab.images(folder, lab)
            for seed in lab.seeds:
                for method, family in {**chosen, "random": NONE}.items():
                    facts = {"set": set_, "arm": method, "family": family, "seed": seed}
                    rows += _cell(lab, facts, folder, whole)
    return report(pd.DataFrame(rows), cfg)


def _cell(
    lab: _lab.Lab, facts: dict[str, Any], folder: Path, whole: Images
) -> list[dict[str, Any]]:
    """A line per layer of one encoder; the last one also holds what the whole is worth."""
    seed, method = facts["seed"], facts["arm"]
    training = lab.training(folder, "simclr" if method == "random" else method, seed)
    tuning = lab.cfg.bench.fine_tune_steps

    def work() -> dict[str, Any]:
        random = method == "random"
        encoder = _trained.untrained(lab.cfg, seed) if random else training.encoder
        subject = lab.subject(encoder, whole)
        found: dict[str, Any] = {"layers": _layers(subject), **_worth(subject, whole, tuning, seed)}
        return found if random else found | {"steps": training.steps}

    depends = [RULES, "cl-vs-mim", training.key, tuning]
    kept = lab.row(facts, depends, work)
    if "failed" in kept:
        return [kept]
    layers = kept.pop("layers")
    return [facts | line for line in layers[:-1]] + [kept | layers[-1]]


def _layers(subject: Subject) -> list[dict[str, float]]:
    """By block: attention, frequencies, and probes."""
    rows = subject.draw(IMAGES)
    seen = attention.measures(subject, rows)
    high = {name: float(c[:, -1].mean()) for name, c in fourier.curves(subject, rows).items()}
    train = subject.draw(layerwise.TRAIN, "train", labelled=True)
    test = subject.draw(layerwise.TEST, "test", labelled=True)
    fit, look = layerwise.features(subject, train), layerwise.features(subject, test)
    known, asked = (embed.rows(subject.rows, _mask(subject, r)) for r in (train, test))
    found = []
    for number in range(1, len(seen["distance"]) + 1):
        line = {
            "layer": number,
            "attention_distance": float(seen["distance"][number - 1].mean()),
            "attention_nmi": float(seen["nmi"][number - 1].mean()),
            "amplitude": high.get(str(number), float("nan")),
        }
        if (name := str(number)) in fit:
            worth = _lab.accuracies(
                embed.with_features(known, fit[name]), embed.with_features(asked, look[name])
            )
            line |= {"layer_linear": worth["linear"], "layer_knn": worth["knn"]}
        found.append(line)
    return found


def _mask(subject: Subject, rows: Any) -> Any:
    mask = np.zeros(len(subject.rows), np.bool_)
    mask[rows] = True
    return mask


def _worth(subject: Subject, whole: Images, tuning: int, seed: int) -> dict[str, float]:
    """kNN, linear probe, and fine-tuning from it."""
    train, test = whole.sets(subject.rows.features)
    head = linear.fit(train)
    named = {
        "knn": knn.predict(train, test.features),
        "linear": linear.named(head, train, test.features),
    }
    if tuning:
        own = copy.deepcopy(subject.encoder)
        named["fine_tune"] = _trained.fine_tuned(tuning, seed, whole, own, head)
    return {k: float((v == test.labels).mean()) for k, v in named.items()}


# ---- what it says ------------------------------------------------------------------------------


def report(rows: pd.DataFrame, cfg: Config) -> Study:
    """Claims, pictures and tables of the rows."""
    rows, left_out = _common.split_failed(rows, ["set", "arm", "seed"])
    s = cfg.study
    claims = [c for set_, part in rows.groupby("set", sort=False) for c in _claims(set_, part, s)]
    whole = rows[rows["knn"].notna()]
    measures = [m for m in MEASURES if m in rows]
    return Study(
        title="Contrast against masking",
        question="How do contrastive learning, masked image modelling and their combination "
        "differ inside, and which task does each suit?",
        design=(
            f"contrast: {', '.join(s.contrast)}; masked: {', '.join(s.masked)}; both: "
            f"{', '.join(s.both)}. {s.teraflops:g} TFLOP each, the same initial weights for "
            "each seed. Fine-tuning starts from the linear probe (LP-FT).",
            f"Attention and frequencies: mean over {IMAGES} test images. NMI: 0 where every query "
            "attends to the same keys. Amplitude: log of the highest frequency over the mean's.",
        ),
        rows=rows,
        claims=claims,
        pictures={
            "cl-vs-mim": _charts.lines(rows, "layer", BY_LAYER, "arm"),
            "worth": _charts.bars(whole, "arm", {m: m.replace("_", " ") for m in measures}),
        },
        tables={
            **{
                str(n): _common.means(p, ["arm", "family"], measures)
                for n, p in whole.groupby("set", sort=False)
            },
            "By layer": _common.means(rows, ["set", "arm", "layer"], list(BY_LAYER)),
        },
        left_out=left_out,
    )


def _claims(set_: Any, rows: pd.DataFrame, s: Settings) -> list[Claim]:
    deepest, family = rows["layer"].max(), rows["family"]
    last, middle = rows["layer"] == deepest, rows["layer"] == max(1, deepest // 2)
    cl, mim, both = (family == f for f in (CONTRAST, MASKED, BOTH))

    def less(measure: str, more: Any, other: Any) -> pd.Series:
        return _common.difference(rows, measure, more, other)

    def says(text: str, measured: str, values: pd.Series) -> Claim:
        return _common.judge(PAPER, text, str(set_), measured, values)

    late = less("layer_linear", cl & last, cl & middle)
    early = less("layer_linear", mim & last, mim & middle)
    claims = [
        says(
            "Contrast attends further in late layers than masking",
            "attention distance in the last block in px, contrast less masked",
            less("attention_distance", cl & last, mim & last),
        ),
        says(
            "With contrast late attention depends little on the query (attention collapse)",
            "NMI in the last block, masked less contrast",
            less("attention_nmi", mim & last, cl & last),
        ),
        says(
            "Contrast keeps low frequencies, masking high ones",
            "log amplitude of the highest frequency in the last block, masked less contrast",
            less("amplitude", mim & last, cl & last),
        ),
        says(
            "Late layers carry contrast, early ones masking",
            f"linear probe, block {deepest} less block {max(1, deepest // 2)}, contrast less "
            "masked",
            (late - early).dropna(),
        ),
        says(
            "Contrast is better for linear probes",
            "linear probe, contrast less masked",
            less("linear", cl & last, mim & last),
        ),
    ]
    worth = {"linear": "linear probe"}
    if "fine_tune" in rows:
        claims.append(
            says(
                "Masking is better for fine-tuning",
                "fine-tuned accuracy, masked less contrast",
                less("fine_tune", mim & last, cl & last),
            )
        )
        worth["fine_tune"] = "fine-tuned accuracy"
    parts = [m for m in PARTS if m in set(rows["arm"])]
    for measure, words in worth.items():
        single = rows[rows["arm"].isin(parts) & last]
        if not len(single) or not both.any():
            continue
        best = single.groupby("arm")[measure].mean().idxmax()
        claims.append(
            says(
                "The combination is better than both of its parts",
                f"{words}, both less {best}, the better part",
                less(measure, both & last, (rows["arm"] == best) & last),
            )
        )
    return [c for c in claims if c.seeds]


PARTS = ("moco_v3", "simmim")  # what cl_mim is made of
