"""A project without training: squares of a hue, an untrained encoder, real stages."""

from __future__ import annotations

import colorsys
import hashlib
import io
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ssl_core import models, shards
from ssl_core.artifacts import write_lineage
from ssl_core.config import Config, Paths
from ssl_core.stages import embed, evaluate, monitor, predict, promote

CFG = Config.model_validate(
    {
        "evaluate": {"bootstrap": 20, "baselines": []},
        "promote": {"bootstrap": 200},
        "deploy": {"reference": 40},
    }
)
CLASSES = ("red", "green", "blue", "yellow", "violet")
SIDE = 16
ARGS = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def picture(label: str, seed: int, shift: float = 0.0) -> bytes:
    """A noisy square of the label's hue: easy for any encoder."""
    rng = np.random.default_rng(seed)
    hue = CLASSES.index(label) / len(CLASSES) + shift + rng.uniform(-0.03, 0.03)
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, 0.8, 0.8)) * 255
    pixels = np.clip(colour + rng.normal(0, 12, (SIDE, SIDE, 3)), 0, 255)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def samples(sources: dict[str, tuple[str, ...]], groups: int) -> list[shards.Sample]:
    """Two images per group; every fourth group is held out."""
    made = []
    for source, labels in sources.items():
        for i in range(2 * groups):
            split = "test" if i // 2 % 4 == 0 else "train"
            label = labels[i // 2 % len(labels)]
            seed = int(hashlib.sha256(f"{source}{i}".encode()).hexdigest()[:8], 16)
            image = picture(label, seed)
            key = hashlib.sha256(image).hexdigest()
            group = f"{source}-{i // 2}"
            made.append(shards.Sample(split, key, "png", image, label, group, source))
    return sorted(made, key=lambda s: (s.split, s.key))


def write_shards(paths: Paths, sources: dict[str, tuple[str, ...]], groups: int = 120) -> None:
    paths.shards.mkdir(parents=True, exist_ok=True)
    for file in paths.shards.iterdir():
        file.unlink()
    shards.write(paths.shards, samples(sources, groups), 2**20, SIDE)
    write_lineage(paths.shards, "shard", {}, {}, {})


def write_curation(paths: Paths) -> None:
    """Stands for the stages before the shards: evaluate notes where the seed's features are."""
    for folder in (paths.manifest, paths.seed_embeddings):
        folder.mkdir(parents=True, exist_ok=True)
        write_lineage(folder, folder.name, {}, {}, {})


def write_encoder(paths: Paths, seed: int) -> None:
    torch.manual_seed(seed)
    meta = {"image_size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3, "method": "none"}
    models.save(models.create("vit_tiny_patch16_224", ARGS), paths.pretrain, meta)
    write_lineage(paths.pretrain, "pretrain", {"seed": seed}, {"shards": paths.shards}, {})


def build(paths: Paths, sources: dict[str, tuple[str, ...]], seed: int, groups: int = 120) -> None:
    """Everything up to stage promote, with an untrained encoder."""
    write_curation(paths)
    write_shards(paths, sources, groups)
    write_encoder(paths, seed)
    embed.run(CFG, paths)
    evaluate.run(CFG, paths)
    tell_baseline(paths, lambda label: np.full(len(label), "none"))


def tell_baseline(paths: Paths, answer: Callable[[pd.Series], np.ndarray]) -> None:
    """What the baseline says, from the true labels."""
    told = pd.read_parquet(paths.evaluation / "test_predictions.parquet")
    told = told.assign(prediction=answer(told["label"]), encoder="random")
    told.to_parquet(paths.evaluation / "baseline_predictions.parquet", index=False)


# ---- deployment --------------------------------------------------------------------------------


def champion(paths: Paths, cfg: Config = CFG) -> str:
    """Build a project and promote its first model; returns the id."""
    build(paths, {"a": CLASSES[:3], "b": CLASSES[:3]}, seed=0)
    return str(promote.run(cfg, paths)["candidate"])


def deploy(
    paths: Paths, day: str, shift: float, groups: int = 60, labelled: bool = True, cfg: Config = CFG
) -> None:
    """Two images per group, all hues moved by ``shift``: served, labelled and monitored."""
    rows = []
    folder = paths.root / cfg.deploy.incoming / day
    folder.mkdir(parents=True)
    for i in range(2 * groups):
        label = CLASSES[i // 2 % 3]
        seed = int(hashlib.sha256(f"{day}{i}".encode()).hexdigest()[:8], 16)
        (folder / f"{i}.png").write_bytes(picture(label, seed, shift))
        rows.append({"path": f"{i}.png", "label": label, "group": f"{day}-{i // 2}"})
    if labelled:
        file = paths.root / cfg.deploy.labels / f"{day}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(file, index=False)
    predict.run(cfg, paths, day)
    monitor.run(cfg, paths, day)
