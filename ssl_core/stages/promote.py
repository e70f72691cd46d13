"""Champion or challenger: decided by ``gate`` on held-out images that neither has trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import embed, gate, registry
from ..artifacts import LINEAGE, atomic_dir, sha256_file, write_json, write_lineage
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..gate import Trial
from ..progress import Reporter
from ..reader import ShardReader
from ._entry import enter, files
from .evaluate import require_current

Mask = NDArray[np.bool_]


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


# ---- the stage ---------------------------------------------------------------------------------


def _settled(paths: Paths, candidate: str, champion: str | None) -> str | None:
    """Why no comparison is needed, or None."""
    if candidate == champion:
        return "The candidate is the champion already: nothing to decide."
    if (why := registry.rejected(paths.registry).get(candidate)) is not None:
        return f"The candidate was rolled back ({why}) and does not return by itself."
    # The last to be promoted is not "before": a crash may have come before its pointer was moved.
    if candidate in registry.lineage(paths.registry)[:-1]:
        return f"The candidate served before {champion}: `headwater rollback` brings it back."
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
    whole, slices = gate.compare_all(trial, cfg.promote, cfg.seed)
    promoted, reason = gate.judge(trial, whole, slices, cfg.promote.margin)
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
        inputs = {"evaluation": sha256_file(paths.evaluation / LINEAGE)}
        name = enter(cfg, paths, whole, decision["reason"])
        registry.promote(
            paths.registry, name, {**numbers, "inputs": inputs}, expected=decision["champion"]
        )
    elif decision["difference"] is not None:
        about = {"previous": decision["champion"], **numbers}
        registry.record(paths.registry, "keep", decision["candidate"], about)


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write promotion/decision.json; on success the candidate becomes champion.

    Raises:
        HeadwaterError: products that do not belong together, a damaged champion, no labelled
            test image, or none that is new to the champion; another champion by now.
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
