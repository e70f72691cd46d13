"""One simulated deployment: a project folder that lives through the weeks.

Everything that decides or learns is the production stage of that name, called in process. Only
what the world does (images, labels, time) is simulated.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from .. import registry, shards
from ..artifacts import write_lineage
from ..config import Config, Paths
from ..harm._common import Vector
from ..reader import ShardReader
from ..repair._common import fraction
from . import collect, embed, evaluate, predict, pretrain, promote
from ._days import labels_file, relative
from ._entry import enter
from ._year import Pool, Shot, arrival, date_of, png, posed

PARTS = (0.3, 0.55)  # of all groups: to train on, and to test on; the rest comes in deployment
TEST = 0.25  # share of collected groups that a full retraining keeps for its test
GROUP = r"^(g\d+)"
Week = Callable[[int], list[Shot]]


def pool_of(folder: Path, side: int) -> Pool:
    """All labelled real images of the shards, as squares; groups get short names."""
    reader = ShardReader(folder, None, side, rgb=True)
    real = ~shards.synthetic(reader.frame["source"])
    known = np.flatnonzero(reader.frame["label"].notna() & real)
    pixels = reader.take(known).permute(0, 2, 3, 1).numpy()  # (N, C, S, S) -> (N, S, S, C)
    codes = pd.factorize(reader.frame["group"])[0][known]
    labels = reader.frame["label"].to_numpy(str)[known]
    return Pool(pixels, labels, np.array([f"g{c:05d}" for c in codes]))


def digits(side: int) -> Pool:
    """scikit-learn's handwritten digits as ink on paper, with a margin."""
    from sklearn.datasets import load_digits

    flat, labels = load_digits(return_X_y=True)
    inner, found = round(0.75 * side), []
    for values in flat:
        tone = Image.fromarray((255 - values.reshape(8, 8) * 14).astype(np.uint8))
        paper = Image.new("RGB", (side, side), (255, 255, 255))
        edge = (side - inner) // 2
        paper.paste(tone.resize((inner, inner), Image.Resampling.BICUBIC), (edge, edge))
        found.append(np.asarray(paper))
    names = np.array([f"g{i:05d}" for i in range(len(flat))])
    return Pool(np.stack(found), labels.astype(str), names)


def parted(pool: Pool, new: str) -> tuple[Pool, Pool, Pool]:
    """Train, test and deployment; the new class is in the last alone."""
    place = np.array([fraction(f"part:{g}") for g in pool.groups])
    old = pool.labels != new
    train, test = old & (place < PARTS[0]), old & (place >= PARTS[0]) & (place < PARTS[1])
    return pool.at(train), pool.at(test), pool.at(~train & ~test)


# ---- the project -------------------------------------------------------------------------------


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """The stages' own lines are not shown: there are thousands."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def sample(split: str, data: bytes, label: str, group: str, source: str) -> shards.Sample:
    """One image for the shards; label "" if unknown."""
    key = hashlib.sha256(data).hexdigest()
    return shards.Sample(split, key, "png", data, label or None, group, source)


def first_images(train_: Pool, test: Pool, seed: int) -> list[shards.Sample]:
    """What the first champion is made of: each training picture in two poses, the others in one."""
    found = []
    for split, pool, times in (("train", train_, 2), ("test", test, 1)):
        rng = np.random.default_rng([seed, times])
        rows = np.tile(np.arange(len(pool)), times)
        for row, image in zip(rows, posed(pool, rows, rng), strict=True):
            label, group = str(pool.labels[row]), str(pool.groups[row])
            found.append(sample(split, png(image), label, group, "first"))
    return found


def write_shards(paths: Paths, samples: list[shards.Sample], side: int) -> None:
    """data/products/shards, and stubs of what came before them."""
    ordered = sorted({s.key: s for s in samples}.values(), key=lambda s: (s.split, s.key))
    paths.shards.mkdir(parents=True, exist_ok=True)
    for file in paths.shards.iterdir():
        file.unlink()
    shards.write(paths.shards, ordered, 2**24, side)
    write_lineage(paths.shards, "shard", {"images": [s.key for s in ordered]}, {}, {})
    for folder in (paths.manifest, paths.seed_embeddings):
        folder.mkdir(parents=True, exist_ok=True)
        write_lineage(folder, folder.name, {}, {}, {})


def train(cfg: Config, paths: Paths) -> None:
    """From shards to a candidate: whole pretraining, features, head."""
    pretrain.run(cfg, paths)
    embed.run(cfg, paths)
    evaluate.run(cfg, paths)


def install(cfg: Config, paths: Paths) -> None:
    """Put the candidate into service without asking whether it is better."""
    told = promote.told(paths)
    whole = {"candidate": float(told["correct"].mean()), "n": len(told)}
    name = enter(cfg, paths, whole, "no gate")
    before = registry.champion(paths.registry)
    registry.promote(paths.registry, name, {"reason": "no gate"}, expected=before)


def first_champion(cfg: Config, paths: Paths, samples: list[shards.Sample]) -> None:
    """The model that all policies start with."""
    write_shards(paths, samples, cfg.simulate.image_size)
    paths.registry.mkdir(parents=True)
    train(cfg, paths)
    install(cfg, paths)


@dataclass
class Life:
    """A deployment under one policy. ``weeks(w)`` gives the images of week w = 1, 2 ...

    ``rows``: one per week; ``moves``: one per change of champion; ``seconds`` of CPU by purpose.
    """

    cfg: Config
    paths: Paths
    weeks: Week
    base: list[shards.Sample]
    rows: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)  # of the ladder
    asked: str = ""  # day of the latest request for a repair
    labels: int = 0
    trainings: int = 0

    @property
    def champion(self) -> str:
        """The model that serves."""
        return str(registry.champion(self.paths.registry))

    @contextlib.contextmanager
    def costs(self, purpose: str) -> Iterator[None]:
        """Adds the CPU seconds of what is done inside."""
        began = time.process_time()
        yield
        spent = time.process_time() - began
        self.seconds[purpose] = self.seconds.get(purpose, 0.0) + spent

    # ---- what the world does ---------------------------------------------------------------

    def serve(self, week: int) -> None:
        """Images come, the champion names them, and the truth is noted for the score."""
        date, shots = date_of(week), self.weeks(week)
        folder = self.paths.root / self.cfg.deploy.incoming / date
        folder.mkdir(parents=True)
        for shot in shots:
            (folder / shot.path).write_bytes(shot.data)
        predict.run(self.cfg, self.paths, date)
        log = pd.read_parquet(self.paths.predictions / f"date={date}/part-0.parquet")
        truth = pd.Series({s.path: s.label for s in shots})
        right = log["prediction"].to_numpy(str) == truth[relative(log["path"], self.cfg, date)]
        row = {"week": week, "model": self.champion, "images": len(log), "alarm": False}
        self.rows.append(row | {"accuracy": float(right.mean()) if len(log) else 0.0})

    def deliver(self, week: int) -> list[str]:
        """Labels that come this week; returns the days they belong to."""
        share, seed, touched = self.cfg.simulate.labelled, self.cfg.seed, []
        for early in (week - 3, week - 1):
            if early < 1:
                continue
            known = [(s, arrival(s.path, early, share, seed)) for s in self.weeks(early)]
            if any(w == week for _, w in known):
                lines = [(s.path, s.label, s.group) for s, w in known if w and w <= week]
                file = labels_file(self.cfg, self.paths, date_of(early))
                file.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(lines, columns=["path", "label", "group"]).to_csv(file, index=False)
                touched.append(date_of(early))
        return touched

    # ---- full retraining -------------------------------------------------------------------

    def collected(self, week: int) -> list[shards.Sample]:
        """Images of the last ``simulate.window`` weeks with the labels that have come."""
        found = []
        for w in range(max(1, week - self.cfg.simulate.window + 1), week + 1):
            for row in collect.rows_of(self.cfg, self.paths, date_of(w)).itertuples():
                split = "test" if fraction(f"test:{row.group}") < TEST else "train"
                data = (self.paths.root / str(row.ref)).read_bytes()
                found.append(sample(split, data, str(row.label), str(row.group), shards.DEPLOYMENT))
        return found

    def retrain(self, week: int, gated: bool = False) -> None:
        """The whole training on first and recent images; without a gate it is put into service."""
        new = self.collected(week)
        with self.costs("training"):
            write_shards(self.paths, self.base + new, self.cfg.simulate.image_size)
            train(self.cfg, self.paths)
            if gated:
                promote.run(self.cfg, self.paths)
            else:
                install(self.cfg, self.paths)
        self.labels += sum(s.label is not None for s in new)
        self.trainings += 1

    def moved(self, week: int, before: str, how: str) -> None:
        """Note a change of champion, and what it does to the weeks to come."""
        if self.champion != before:
            gain = effect(self, before, self.champion, week)
            self.moves.append({"week": week, "how": how, "difference": gain})


def said(cfg: Config, paths: Paths, model: str, shots: list[Shot]) -> Vector:
    """Whether a model is right (1 or 0) on each readable image."""
    chosen = registry.load(paths.registry, model)
    side, size = int(chosen.card["max_side"]), int(chosen.meta["image_size"])
    seen = [predict.look(s.path, s.data, cfg.data.max_pixels, side, size) for s in shots]
    good = [s for s in seen if s.pixels is not None]
    truth = {s.path: s.label for s in shots}
    if not good:
        return np.zeros(0)
    named = predict.name(chosen, good)["prediction"].to_numpy(str)
    return np.array([n == truth[s.path] for n, s in zip(named, good, strict=True)], np.float64)


def effect(life: Life, old: str, new: str, week: int, ahead: int = 4) -> float:
    """Accuracy of the new model less the old one's on all images of the following weeks."""
    shots = [s for w in range(week + 1, week + 1 + ahead) for s in life.weeks(w)]
    ours, theirs = (said(life.cfg, life.paths, m, shots) for m in (new, old))
    return float((ours - theirs).mean()) if len(ours) else 0.0


def clone(base: Paths, target: Path) -> Paths:
    """A project of its own that starts with the first champion."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base.root, target)
    return Paths(target)
