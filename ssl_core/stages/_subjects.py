"""Encoders by name, with their features of the shards, which are computed once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from .. import embed, models, registry
from ..analyse._subject import Masks, Subject
from ..artifacts import LINEAGE, read_json, sha256_file, sha256_json
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..progress import Reporter
from ..reader import ShardReader
from ..shards import synthetic
from .evaluate import OURS, require_current

Colours = tuple[models.Colour, models.Colour]


class Real:
    """The images of a reader that no generator made: nothing is measured on synthetic ones."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader, self.side, self.channels = reader, reader.side, reader.channels
        self.places = np.flatnonzero(~synthetic(reader.frame["source"]))

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Rows (B,) of the real images -> uint8 (B, C, S, S)."""
        return self.reader.take(self.places[rows])


@dataclass(frozen=True)
class Named:
    """An encoder with what it takes, and a key that changes with its weights."""

    encoder: models.Encoder
    colour: Colours
    image_size: int
    key: str


def _of_folder(folder: Path) -> Named:
    meta = read_json(folder / models.META)
    encoder = models.load(folder)  # says what is wrong with the folder
    colour = models.normalisation(encoder.channels)
    mean, std = (tuple(meta.get(k, c)) for k, c in zip(("mean", "std"), colour, strict=True))
    size = meta.get("image_size") or meta["args"].get("img_size")
    if not size:
        rule = f"names no image_size in {models.META}"
        raise HeadwaterError(folder, rule, "add it: the side of the images that it was made for")
    return Named(encoder, (mean, std), int(size), meta["sha256"])


def _random(cfg: Config, paths: Paths) -> Named:
    """The architecture of our encoder, untrained."""
    meta = read_json(paths.pretrain / models.META)
    torch.manual_seed(cfg.seed)
    encoder = models.create(meta["model_name"], meta["args"])
    own = sha256_json([meta["model_name"], meta["args"], cfg.seed])
    return Named(encoder, (tuple(meta["mean"]), tuple(meta["std"])), meta["image_size"], own)


def _pinned(name: str, cfg: Config) -> Named:
    module, mean, std = models.seed_encoder(name)
    assert isinstance(module, models.Pooled)
    size = cfg.seed_encoder.image_size
    return Named(module.encoder, (mean, std), size, sha256_json([name, size]))


def named(name: str, cfg: Config, paths: Paths) -> Named:
    """The encoder that a name of ``analyse.encoders`` means.

    Raises:
        HeadwaterError: none of the kinds that there are, or damaged.
    """
    if name == OURS:
        return _of_folder(paths.pretrain)
    if name == "random":
        return _random(cfg, paths)
    if name == "seed" or name.startswith("hub:"):
        return _pinned(cfg.seed_encoder.encoder if name == "seed" else name, cfg)
    if registry.ID.fullmatch(name):
        registry.verify(paths.registry, name)
        return _of_folder(registry.path(paths.registry, name))
    if (folder := paths.root / name).is_dir():
        return _of_folder(folder)
    rule = "is no encoder: neither random, seed, hub:<timm name>, a model's id nor a folder"
    raise HeadwaterError(f"analyse.encoders '{name}'", rule, "correct params.yaml")


def _features(own: Named, reader: ShardReader, paths: Paths, batch_size: int) -> Any:
    """Pooled features of all images (N, D), from an earlier call where there is one."""
    shards = sha256_file(paths.shards / LINEAGE)
    key = sha256_json([own.key, own.image_size, own.colour, shards])[:16]
    file = paths.runs / "features" / f"{key}.npy"
    if not file.exists():
        found = embed.compute(own.encoder, reader, *own.colour, batch_size)
        file.parent.mkdir(parents=True, exist_ok=True)
        embed.save_array(file, found)
    return np.load(file)


def masks(cfg: Config, paths: Paths, keys: Any) -> Masks | None:
    """The mask of each image by content, None without a folder of masks."""
    folder = paths.root / cfg.analyse.masks
    if not cfg.analyse.masks or not folder.is_dir():
        return None
    frame = pd.read_parquet(paths.manifest / "manifest.parquet", columns=["path", "sha256"])
    files: dict[str, Path] = {}
    for path, key in zip(frame["path"], frame["sha256"], strict=True):
        file = folder / Path(str(path)).with_suffix(".png")
        if not Path(str(path)).is_absolute() and ".." not in file.parts and file.exists():
            files.setdefault(str(key), file)
    return Masks(tuple(files.get(str(k)) for k in keys))


def subject(name: str, cfg: Config, paths: Paths, report: Reporter) -> tuple[Subject, str]:
    """An encoder ready to be looked at, and the key of its weights.

    Raises:
        HeadwaterError: as :func:`named`; our encoder was trained on other shards; channels that
            it does not take.
    """
    if name == OURS:
        require_current(paths.pretrain, shards=paths.shards)
    own = named(name, cfg, paths)
    reader = ShardReader(paths.shards, None, own.image_size)
    models.require_channels(own.encoder, reader.channels)
    report.log(f"{name}: {own.encoder.name} at {own.image_size} px")
    real = Real(reader)
    frame = reader.frame.iloc[real.places]
    rows = embed.frame(frame, read_json(paths.shards / "index.json")["classes"])
    features = _features(own, reader, paths, cfg.embed.batch_size)[real.places]
    embed.ready(own.encoder)
    return Subject(
        name,
        own.encoder,
        own.colour,
        real,
        dataclasses.replace(rows, features=features),
        (frame["split"] == "train").to_numpy(),
        masks(cfg, paths, rows.sha256),
        cfg.seed,
    ), own.key
