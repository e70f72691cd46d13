"""Serve the champion over one day's images and log what it said."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import embed, images, registry
from ..artifacts import atomic_dir, sha256_json, write_lineage
from ..config import Config, Paths
from ..decoding import Pixels, canvas
from ..errors import HeadwaterError
from ..harm._quality import MEASURES, table
from ..parallel import ordered_map
from ..progress import Reporter
from ..registry import Model
from ._days import grouping, partition, read_labels, relative

REJECTS = ("path", "reason", "detail")


@dataclass(frozen=True)
class Seen:
    """One file of the day: ``pixels`` (C, S, S), or why there are none; ``bytes`` its size."""

    path: str
    sha256: str = ""
    bytes: int = 0
    pixels: Pixels | None = None
    reason: str = ""
    detail: str = ""


def incoming(cfg: Config, paths: Paths, date: str) -> list[str]:
    """Refs of all files of one day, relative to the project, sorted; hidden ones are no images.

    Raises:
        HeadwaterError: the day has no folder.
    """
    folder = paths.root / cfg.deploy.incoming / date
    if not folder.is_dir():
        rule = "does not exist"
        raise HeadwaterError(folder, rule, "put the day's images there, or correct deploy.incoming")
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(here) / n for n in names if not n.startswith(".")]
    return sorted(f.relative_to(paths.root).as_posix() for f in found)


def read(
    ref: str, root: Path, max_pixels: int, max_side: int, size: int, channels: int = 3
) -> Seen:
    """Read and :func:`look` at the file behind a ref."""
    try:
        data = images.read_bytes(ref, root)
    except images.Reject as reject:
        return Seen(ref, reason=reject.reason, detail=reject.detail)
    except OSError as error:
        return Seen(ref, reason="unreadable", detail=error.strerror or "")
    return look(ref, data, max_pixels, max_side, size, channels)


def look(
    ref: str, data: bytes, max_pixels: int, max_side: int, size: int, channels: int = 3
) -> Seen:
    """Decode as for the shards the model learned from: at most ``max_side``, then a square."""
    try:
        pixels = canvas(images.decode(data, max_side, max_pixels, channels), size)
    except images.Reject as reject:
        return Seen(ref, reason=reject.reason, detail=reject.detail)
    return Seen(ref, hashlib.sha256(data).hexdigest(), len(data), pixels)


def read_all(refs: list[str], cfg: Config, root: Path, model: Model) -> Iterator[list[Seen]]:
    """Decoded batches in order, read ahead by threads."""
    side, size = int(model.card["max_side"]), int(model.meta["image_size"])
    threads, step = os.cpu_count() or 1, cfg.embed.batch_size
    limit, channels = cfg.data.max_pixels, model.encoder.channels

    def load(chunk: list[str]) -> list[Seen]:
        return [read(ref, root, limit, side, size, channels) for ref in chunk]

    # Small pieces keep all threads busy; the model gets them as they come, in batches.
    piece = max(1, min(step, 32))
    chunks = (refs[i : i + piece] for i in range(0, len(refs), piece))
    batch: list[Seen] = []
    for part in ordered_map(load, chunks, threads, ahead=2 * threads):
        batch += part
        if len(batch) >= step:
            yield batch
            batch = []
    if batch:
        yield batch


def quality(good: list[Seen]) -> pd.DataFrame:
    """What a camera can spoil, by image: the columns that detector ``quality`` compares."""
    pixels = [s.pixels.transpose(1, 2, 0) for s in good if s.pixels is not None]  # (H, W, C)
    colour = (p if p.shape[2] == 3 else p.mean(axis=2, keepdims=True).repeat(3, 2) for p in pixels)
    frame = pd.DataFrame(table(colour), columns=list(MEASURES)).astype(np.float32)
    return frame.assign(bytes=np.array([s.bytes for s in good], np.int64))


def name(model: Model, good: list[Seen]) -> pd.DataFrame:
    """Rows of the log for one batch of readable images."""
    stack = torch.from_numpy(np.stack([s.pixels for s in good if s.pixels is not None]))
    mean, std = tuple(model.meta["mean"]), tuple(model.meta["std"])
    found = embed.forward(model.encoder, stack, mean, std)
    prediction, confidence = model.head.predict(found)
    frame = pd.DataFrame(
        {
            "path": [s.path for s in good],
            "sha256": [s.sha256 for s in good],
            "embedding": list(found),
            "prediction": prediction,
            "confidence": confidence,
            "model": model.id,
        }
    )
    return pd.concat([frame, quality(good)], axis=1)


def empty() -> pd.DataFrame:
    """The log of a day without images: the same columns and types."""
    text = pd.Series(dtype="str")
    frame = pd.DataFrame(
        {
            "path": text,
            "sha256": text,
            "embedding": pd.Series(dtype=object),
            "prediction": text,
            "confidence": pd.Series(dtype=np.float32),
            "model": text,
        }
    )
    return pd.concat([frame, quality([])], axis=1)


def with_labels(frame: pd.DataFrame, cfg: Config, paths: Paths, date: str) -> pd.DataFrame:
    """Columns ``group``, as the path says ("": by itself), and ``label``: null where none came."""
    frame = frame.assign(group=grouping(cfg.deploy.group)(relative(frame["path"], cfg, date)))
    labels = read_labels(cfg, paths, date)
    if labels is None:
        return frame.assign(label=pd.Series(pd.NA, frame.index, dtype="str"))
    known = labels[labels["label"] != ""].set_index("path")["label"]
    return frame.assign(label=relative(frame["path"], cfg, date).map(known).astype("str"))


def serve(
    cfg: Config, paths: Paths, model: Model, refs: list[str], report: Reporter
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The log and the rejects for all refs."""
    parts, rejects = [empty()], []
    embed.ready(model.encoder)
    with report.bar(len(refs), "img") as advance:
        for batch in read_all(refs, cfg, paths.root, model):
            good = [s for s in batch if s.pixels is not None]
            rejects += [(s.path, s.reason, s.detail) for s in batch if s.pixels is None]
            if good:
                parts.append(name(model, good))
            advance(len(batch))
    log = pd.concat(parts[1:] or parts, ignore_index=True)
    return log, pd.DataFrame(rejects, columns=list(REJECTS)).astype("str")


def place(paths: Paths, date: str, model: str, shadow: bool) -> Path:
    """Where the day's log goes; a shadow run leaves the served one alone."""
    folder = paths.deploy / "shadow" / model if shadow else paths.predictions
    return partition(folder, date)


def choose(paths: Paths, model: str) -> Model:
    """The champion, or the model of the registry that was asked for.

    Raises:
        HeadwaterError: there is no champion, no such model, or it is damaged.
    """
    wanted = model or registry.champion(paths.registry)
    if wanted is None:
        rule = "has no champion"
        raise HeadwaterError(paths.registry, rule, "run `headwater promote`, or dvc checkout")
    return registry.load(paths.registry, wanted)


def run(cfg: Config, paths: Paths, date: str, model: str = "") -> dict[str, Any]:
    """Write predictions/date=<date>/part-0.parquet and rejects.parquet.

    With ``model`` (an id of the registry) it goes to data/deploy/shadow/<model>/date=<date>/: what
    that model would have said.

    Raises:
        HeadwaterError: ``date`` is no day or has no folder, no champion, or a damaged model.
    """
    partition(paths.predictions, date)  # refuses what is not a day
    chosen, refs = choose(paths, model), incoming(cfg, paths, date)
    target = place(paths, date, chosen.id, bool(model))
    with Reporter("predict") as report, atomic_dir(target) as out:
        frame, rejects = serve(cfg, paths, chosen, refs, report)
        with_labels(frame, cfg, paths, date).to_parquet(out / "part-0.parquet", index=False)
        rejects.to_parquet(out / "rejects.parquet", index=False)
        counts = {
            "images": len(frame),
            "rejected": len(rejects),
            "content": sha256_json(sorted(frame["sha256"])),
        }
        inputs = {"model": registry.path(paths.registry, chosen.id) / registry.CARD}
        settings = {"incoming": cfg.deploy.incoming, "group": cfg.deploy.group, "date": date}
        write_lineage(out, "predict", settings, inputs, counts)
        report.log(f"{date}: {len(frame)} images named by {chosen.id}, {len(rejects)} rejected")
    return {"images": len(frame), "rejected": len(rejects), "model": chosen.id}
