"""Champion or challenger: decided on held-out images that neither has trained on.

Promoted is what is *proven* better (paired bootstrap over groups, lower end above zero) on all
test images, or on a source the champion never trained on: the slice that retraining is to mend.
Each such look can err, so the level is shared among them (Bonferroni). Refused is what is
*proven* worse on a source the champion knew, by more than the margin at the point estimate. To
prove the opposite, that the loss is below the margin, would take thousands of images per source.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import embed, models, registry
from ..artifacts import atomic_dir, read_json, sha256_file, write_json, write_lineage
from ..config import Config, Deploy, Paths, Promote
from ..errors import HeadwaterError
from ..evaluate import _common, _head
from ..progress import Reporter
from ..shards import ShardReader
from .evaluate import require_current

LEAST = 20  # groups below which a bootstrap interval proves nothing
Slice = dict[str, Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """The same held-out images named by both sides.

    ``frame`` has sha256, group, source, correct and ``other`` (whether the opponent is right).
    """

    frame: pd.DataFrame
    opponent: str  # in words
    known: frozenset[str] | None = None  # sources the champion trained on; None: no champion
    excluded: int = 0  # images the champion trained on


# ---- the comparison ----------------------------------------------------------------------------


def told(paths: Paths) -> pd.DataFrame:
    """The challenger's predictions on labelled test images.

    Raises:
        HeadwaterError: there is none.
    """
    frame = pd.read_parquet(paths.evaluation / "test_predictions.parquet")
    frame = frame.dropna(subset=["label"]).astype({"correct": bool})
    if not len(frame):
        rule = "holds no labelled image: nothing can be proven"
        raise HeadwaterError("test split", rule, "label some held-out images")
    return frame


def against_baseline(cfg: Config, paths: Paths) -> Trial:
    """The first champion has to beat a baseline's linear probe.

    Raises:
        HeadwaterError: stage evaluate did not measure that baseline.
    """
    name, frame = cfg.promote.first_baseline, told(paths)
    rest = pd.read_parquet(paths.evaluation / "baseline_predictions.parquet")
    rest = rest[rest["encoder"] == name].set_index("sha256")
    if not len(rest):
        rule = "was not measured by stage evaluate"
        fix = f"take one of evaluate.baselines ({', '.join(cfg.evaluate.baselines)})"
        raise HeadwaterError(f"promote.first_baseline '{name}'", rule, fix)
    other = rest["prediction"].reindex(frame["sha256"]).to_numpy(object)
    return Trial(frame.assign(other=other == frame["label"]), f"the {name} baseline")


def seen(frame: pd.DataFrame, trained_on: pd.DataFrame) -> Mask:
    """Rows that share an image or a group with a champion's training data."""
    result: Mask = (
        frame["sha256"].isin(trained_on["sha256"]) | frame["group"].isin(trained_on["group"])
    ).to_numpy()
    return result


def named_by(model: registry.Model, paths: Paths, keys: pd.Series) -> NDArray[np.str_]:
    """Class names a registered model gives to test images, by its own head and input size."""
    reader = ShardReader(paths.shards, "test", model.meta["image_size"])
    mean, std = tuple(model.meta["mean"]), tuple(model.meta["std"])
    names, _ = model.head.predict(embed.compute(model.encoder, reader, mean, std))
    return pd.Series(names, reader.frame["key"]).reindex(keys).to_numpy(str)


def against_champion(paths: Paths, champion: str) -> Trial:
    """Both on the current test images, less those the champion trained on.

    The champion answers by class name; a class it does not know is an error, as it would be in
    service.

    Raises:
        HeadwaterError: damaged champion, or no image is left.
    """
    frame, model = told(paths), registry.load(paths.registry, champion)
    own = registry.path(paths.registry, champion)
    leaked = seen(frame, pd.read_parquet(own / "seen.parquet"))
    if leaked.all():
        rule = "has trained on every labelled test image: there is nothing to compare on"
        raise HeadwaterError(f"champion {champion}", rule, "add held-out images of new groups")
    fair = frame[~leaked]
    other = named_by(model, paths, fair["sha256"]) == fair["label"].to_numpy(str)
    known = frozenset(model.card["sources"])
    return Trial(fair.assign(other=other), f"champion {champion}", known, int(leaked.sum()))


# ---- the rule ----------------------------------------------------------------------------------


def compare(frame: pd.DataFrame, cfg: Promote, level: float, seed: int) -> Slice:
    """Accuracy of the challenger less the opponent's on the same images."""
    gain = frame["correct"].astype(float) - frame["other"].astype(float)
    groups = frame["group"].to_numpy(str)
    value, low, high = _common.difference(gain, groups, cfg.bootstrap, level, seed)
    alone = not np.isfinite([low, high]).all()  # one group: no interval, and no NaN in JSON
    return {
        "difference": value,
        "low": None if alone else low,
        "high": None if alone else high,
        "n": len(frame),
        "groups": int(frame["group"].nunique()),
        "level": level,
        "candidate": float(frame["correct"].mean()),
        "opponent": float(frame["other"].mean()),
    }


def compare_all(trial: Trial, cfg: Promote, seed: int) -> tuple[Slice, dict[str, Slice]]:
    """The whole test split, and each source; ``new`` marks sources the champion never knew."""
    sources = sorted(trial.frame["source"].unique())
    new = [s for s in sources if trial.known is not None and s not in trial.known]
    shared = 1 - (1 - cfg.level) / (1 + len(new))  # Bonferroni over the looks at a gain
    slices = {}
    for name in sources:
        part = trial.frame[trial.frame["source"] == name]
        level = shared if name in new else cfg.level
        slices[f"source:{name}"] = {**compare(part, cfg, level, seed), "new": name in new}
    return compare(trial.frame, cfg, shared, seed), slices


def better(found: Slice) -> bool:
    """Proven better."""
    return found["low"] is not None and found["low"] > 0 and found["groups"] >= LEAST


def worse(found: Slice, margin: float) -> bool:
    """Proven worse, and by more than the margin at the point estimate."""
    proven = found["high"] is not None and found["high"] < 0
    return bool(proven and found["difference"] < -margin)


def _say(found: Slice) -> str:
    if found["low"] is None:
        return f"{100 * found['difference']:+.1f} points on {found['n']} images of one group"
    return (
        f"{100 * found['difference']:+.1f} points, {100 * found['level']:.3g}% interval "
        f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}, {found['n']} images in "
        f"{found['groups']} groups"
    )


def judge(trial: Trial, whole: Slice, slices: dict[str, Slice], margin: float) -> tuple[bool, str]:
    """The rule, and a sentence that gives the numbers it rests on."""
    places = {"all test images": whole} | {
        f"{k.partition(':')[2]}, new to the champion": s for k, s in slices.items() if s["new"]
    }
    gains = [f"{name} ({_say(s)})" for name, s in places.items() if better(s)]
    harmed = [
        f"{k.partition(':')[2]} ({_say(s)})"
        for k, s in slices.items()
        if trial.known is not None and not s["new"] and worse(s, margin)
    ]
    note = f" Left out: {trial.excluded} test images the champion trained on." * bool(
        trial.excluded
    )
    if not gains:
        return False, f"Not proven better than {trial.opponent}: {_say(whole)}.{note}"
    gain = f"Proven better than {trial.opponent} on {' and on '.join(gains)}"
    if harmed:
        limit = f"worse by more than {100 * margin:g} points on {' and on '.join(harmed)}"
        return False, f"{gain}, but {limit}.{note}"
    return (
        True,
        f"{gain}; not proven worse on any known source.{note}"
        if trial.known is not None
        else f"{gain}.",
    )


# ---- the registry's files ----------------------------------------------------------------------


def reference(cfg: Deploy, paths: Paths) -> pd.DataFrame:
    """Held-out images that stand for normal: one per group, drawn by content hash."""
    frame = pd.read_parquet(paths.evaluation / "test_predictions.parquet")
    test = embed.load(paths.embeddings, "test")
    place = pd.Series(np.arange(len(test)), test.sha256)
    drawn = frame.sort_values("sha256").drop_duplicates("group").head(cfg.reference)
    features = test.features[place[drawn["sha256"]].to_numpy()]
    drawn = drawn.assign(embedding=list(features))
    columns = [
        "sha256",
        "group",
        "source",
        "label",
        "embedding",
        "prediction",
        "confidence",
        "correct",
    ]
    return drawn[columns].reset_index(drop=True)


def files(paths: Paths) -> dict[str, Path]:
    """What a model is made of, by name in the registry.

    Raises:
        HeadwaterError: a stage has not run.
    """
    found = {
        models.WEIGHTS: paths.pretrain,
        models.META: paths.pretrain,
        _head.WEIGHTS: paths.evaluation,
        _head.META: paths.evaluation,
    }
    for name, folder in found.items():
        if not (folder / name).exists():
            raise HeadwaterError(folder / name, "is missing", "run stages pretrain to evaluate")
    return {name: folder / name for name, folder in found.items()}


def card(paths: Paths, whole: Slice) -> dict[str, Any]:
    """What to know of a model years later; no time in it, so equal models have equal cards."""
    index = pd.read_parquet(paths.shards / "index.parquet")
    train = index[index["split"] == "train"]
    about, meta = read_json(paths.shards / "index.json"), read_json(paths.pretrain / models.META)
    return {
        "sources": sorted(train["source"].unique().tolist()),
        "images": len(train),
        "groups": int(train["group"].nunique()),
        "max_side": about["max_side"],
        "classes": len(read_json(paths.evaluation / _head.META)["classes"]),
        "method": meta.get("method"),
        "image_size": meta["image_size"],
        "accuracy": {"value": whole["candidate"], "n": whole["n"]},
        "lineage": {
            p.name: sha256_file(p / "lineage.json")
            for p in (paths.shards, paths.pretrain, paths.evaluation)
        },
    }


def enter(cfg: Config, paths: Paths, whole: Slice) -> str:
    """Copy the challenger into the registry; returns its id."""
    index = pd.read_parquet(paths.shards / "index.parquet")
    train = index[index["split"] == "train"].rename(columns={"key": "sha256"})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        reference(cfg.deploy, paths).to_parquet(work / "reference.parquet", index=False)
        train[["sha256", "group"]].to_parquet(work / "seen.parquet", index=False)
        extra = {f: work / f for f in ("reference.parquet", "seen.parquet")}
        return registry.add(paths.registry, {**files(paths), **extra}, card(paths, whole))


# ---- the stage ---------------------------------------------------------------------------------


def _settled(paths: Paths, candidate: str, champion: str | None) -> str | None:
    """Why no comparison is needed, or None."""
    if candidate == champion:
        return "The candidate is the champion already: nothing to decide."
    if (why := registry.rejected(paths.registry).get(candidate)) is not None:
        return f"The candidate was rolled back ({why}) and does not return by itself."
    return None


def decide(cfg: Config, paths: Paths) -> dict[str, Any]:
    """The decision, without acting on it.

    Raises:
        HeadwaterError: products that do not belong together, or nothing to compare on.
    """
    require_current(
        paths.evaluation, shards=paths.shards, pretrain=paths.pretrain, embeddings=paths.embeddings
    )
    candidate, champion = registry.identify(files(paths)), registry.champion(paths.registry)
    base: dict[str, Any] = {"candidate": candidate, "champion": champion, "slices": {}}
    if reason := _settled(paths, candidate, champion):
        numbers = dict.fromkeys(("difference", "low", "high", "n"))
        return {
            **base,
            **numbers,
            "promoted": False,
            "reason": reason,
            "level": cfg.promote.level,
            "excluded": 0,
        }
    trial = against_champion(paths, champion) if champion else against_baseline(cfg, paths)
    whole, slices = compare_all(trial, cfg.promote, cfg.seed)
    promoted, reason = judge(trial, whole, slices, cfg.promote.margin)
    accuracy = {"candidate": whole.pop("candidate"), "opponent": whole.pop("opponent")}
    return {
        **base,
        **whole,
        "accuracy": accuracy,
        "against": trial.opponent,
        "slices": slices,
        "promoted": promoted,
        "reason": reason,
        "excluded": trial.excluded,
    }


def _act(cfg: Config, paths: Paths, decision: dict[str, Any]) -> None:
    """Bring the registry in line with the decision; doing it twice changes nothing."""
    numbers = {k: decision[k] for k in ("reason", "difference", "low", "high", "n")}
    if decision["promoted"]:
        whole = {"candidate": decision["accuracy"]["candidate"], "n": decision["n"]}
        registry.promote(paths.registry, enter(cfg, paths, whole), numbers)
    elif decision["difference"] is not None:
        about = {"previous": decision["champion"], **numbers}
        registry.record(paths.registry, "keep", decision["candidate"], about)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write promotion/decision.json; on success the candidate becomes champion.

    Raises:
        HeadwaterError: products that do not belong together, a damaged champion, no labelled
            test image, or none that is new to the champion.
    """
    with Reporter("promote") as report, atomic_dir(paths.promotion) as out:
        inputs = {
            "shards": paths.shards,
            "pretrain": paths.pretrain,
            "embeddings": paths.embeddings,
            "evaluation": paths.evaluation,
        }
        decision = decide(cfg, paths)
        if decision["champion"]:
            inputs["champion"] = registry.path(paths.registry, decision["champion"]) / registry.CARD
        paths.registry.mkdir(parents=True, exist_ok=True)  # an output even if nothing qualified
        _act(cfg, paths, decision)
        write_json(out / "decision.json", decision)
        config = cfg.section("promote") | {"seed": cfg.seed, "reference": cfg.deploy.reference}
        counts = {"promoted": int(decision["promoted"]), "excluded": decision["excluded"]}
        write_lineage(out, "promote", config, inputs, counts)
        report.log(decision["reason"])
    return {k: decision[k] for k in ("promoted", "reason", "candidate", "champion")}
