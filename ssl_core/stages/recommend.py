"""Where to start: method and options for some data, goal and means, with reasons and sources."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..artifacts import read_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ._choice import method
from ._facts import CONTRASTIVE, MULTI_CROP, RULE, Advice, Facts
from ._rules import RULES, backbone_args

LEAST = 32  # images
NOTE = (
    f"'{RULE}' marks starting points that no cited work proves for your data: sweep the "
    "temperature and the crops there, and compare with the baselines of `headwater evaluate`."
)


def run(cfg: Config, paths: Paths, **given: Any) -> dict[str, Any]:
    """Advice on every choice and the ``params.yaml`` that follows from it.

    Args:
        given: ``images``, ``classes``, ``tail``, ``object_scale``, ``task``, ``compute`` (GPU-hours
            or "cpu") and ``labels``; what is None is read from the shards or assumed.

    Raises:
        HeadwaterError: a value out of range, or neither images nor shards.
    """
    facts, origins = gather(paths.shards, given)
    advice = {"method": method(facts)}
    name = advice["method"].value
    advice |= {key: rule(facts, name) for key, rule in RULES.items()}
    return {
        "facts": {k: {"value": v, "from": origins[k]} for k, v in asdict(facts).items()},
        "advice": {key: asdict(value) for key, value in advice.items()},
        "params": params(advice),
        "notes": notes(facts, advice),
    }


def gather(shards: Path, given: dict[str, Any]) -> tuple[Facts, dict[str, str]]:
    """The facts, and for each whether it was given, measured or assumed."""
    said = {k: v for k, v in given.items() if v is not None}
    if (compute := said.pop("compute", None)) is not None:
        said["gpu_hours"] = _hours(compute)
    measured = measure(shards)
    known = measured | said
    if "images" not in known:
        raise HeadwaterError(
            shards, "holds no shards to count", "give --images, or run stage shard"
        )
    facts = replace(Facts(images=int(known["images"])), **known)
    _check(facts)
    origins = dict.fromkeys(asdict(facts), "assumed")
    origins |= dict.fromkeys(measured, "shards") | dict.fromkeys(said, "given")
    return facts, origins


def measure(shards: Path) -> dict[str, Any]:
    """Images, classes, imbalance and share of labels of the train split; empty without shards."""
    if not (shards / "index.json").exists():
        return {}
    frame = pd.read_parquet(shards / "index.parquet", columns=["split", "label"])
    labels = frame.loc[frame["split"] == "train", "label"]
    counts = labels.value_counts()
    return {
        "images": len(labels),
        "classes": len(read_json(shards / "index.json")["classes"]),
        "tail": float(counts.max() / counts.min()) if len(counts) else 1.0,
        "labels": round(float(labels.notna().mean()), 3),
    }


def _hours(compute: str | float) -> float:
    if str(compute).lower() == "cpu":
        return 0.0
    try:
        return float(compute)
    except ValueError:
        rule = "is neither a number of GPU-hours nor 'cpu'"
        raise HeadwaterError(f"--compute {compute}", rule, "write e.g. --compute 20") from None


def _check(f: Facts) -> None:
    rules = [
        (f.images >= LEAST, "images", f"must be at least {LEAST}"),
        (f.classes >= 0, "classes", "must not be negative"),
        (f.tail >= 1, "tail", "must be at least 1: the largest class over the smallest"),
        (0 < f.object_scale <= 1, "object_scale", "must be a share of the area in (0, 1]"),
        (f.task in ("classification", "dense"), "task", "must be classification or dense"),
        (0 <= f.gpu_hours < float("inf"), "gpu_hours", "must be a number from 0 on"),
        (0 <= f.labels <= 1, "labels", "must be a share in [0, 1]"),
    ]
    for good, name, rule in rules:
        if not good:
            option = "compute" if name == "gpu_hours" else name.replace("_", "-")
            raise HeadwaterError(f"--{option} {getattr(f, name)}", rule, "change the option")


def params(advice: dict[str, Advice]) -> dict[str, Any]:
    """The tree of ``params.yaml``."""
    value = {key: a.value for key, a in advice.items()}
    side = value["image_size"]
    # Smaller crops than images: a small CNN learns more per minute of them (LOG.md).
    crop = side // 2 if value["backbone"] == "resnet10t" else side
    pretrain = {
        "method": value["method"],
        "recipe": value["recipe"],
        "options": _options(value),
        "backbone": value["backbone"],
        "backbone_args": backbone_args(value["backbone"]),
        "image_size": side,
        "crop_size": crop,
        "epochs": value["epochs"],
        "batch_size": value["batch_size"],
    }
    if value["sam"]:
        pretrain["sam"] = value["sam"]
    return {"shard": {"max_side": side}, "pretrain": pretrain}


def _options(value: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"scale": list(value["crop_scale"])}
    if value["local_crop_scale"]:
        options["local_scale"] = list(value["local_crop_scale"])
    if value["method"] == "vicregl" and value["image_size"] == 224:
        options["matches"] = [20, 4]  # the paper's, for maps of 7 x 7
    if value["method"] in (*CONTRASTIVE, "pmsn"):
        options["temperature"] = value["temperature"]["start"]
    elif value["method"] in MULTI_CROP:
        start = value["temperature"]["start"]
        # The papers warm up to the top of the range where the data are large.
        end = value["temperature"]["high"] if value["recipe"] == "paper" else start
        options["teacher_temperature"] = [start, end]
    return options


def notes(f: Facts, advice: dict[str, Advice]) -> list[str]:
    """What the reader should know beside the table."""
    found = [NOTE]
    if advice["epochs"].value < 10:
        found.append(
            f"The compute covers only {advice['epochs'].value:g} epochs: train on a sample, take "
            "smaller images, or start from a published encoder (pretrain.init)."
        )
    if f.images < 5000:
        found.append(
            "On so few images an encoder pretrained elsewhere usually wins; measure it as the "
            "baseline 'seed' before you trust one trained from scratch."
        )
    found.append(
        f"shard.max_side {advice['image_size'].value} takes effect when stage shard runs again."
    )
    return found


def text(result: dict[str, Any]) -> str:
    """The result for people: facts, advice and the snippet."""
    import yaml

    lines = ["What is known"]
    lines += [f"  {k:<18}{v['value']!s:<16}({v['from']})" for k, v in result["facts"].items()]
    lines.append("\nAdvice")
    for key, a in result["advice"].items():
        lines += [
            f"  {key:<18}{_short(a['value'])}",
            f"  {'':<18}{a['reason']}",
            f"  {'':<18}[{a['source']}]",
        ]
    lines += ["", *(f"Note: {note}" for note in result["notes"]), "\nFor params.yaml:\n"]
    return "\n".join(lines) + "\n" + yaml.safe_dump(result["params"], sort_keys=False)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "low" in value:
        start = value["start"]
        shown = "cosine schedule" if isinstance(start, dict) else f"{start:g}"
        return f"{shown}, within {value['low']:g} to {value['high']:g}"
    if isinstance(value, tuple | list):
        return " to ".join(f"{v:g}" for v in value)
    return "none" if value is None else str(value)
