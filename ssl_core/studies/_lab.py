"""Where studies train: by the recipe of section bench, each training and each measurement once.

Everything is kept below ``runs/studies`` by a digest of what it depends on, so that an interrupted
study goes on where it stopped, and two studies share the trainings that they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import embed, models
from ..analyse._subject import Subject
from ..artifacts import read_json, sha256_json, write_json
from ..augment import Augmenter
from ..config import Arm, Config, Paths
from ..errors import HeadwaterError
from ..evaluate import knn, linear
from ..progress import Reporter
from ..stages import _trained
from ..stages._bench_sets import prepared
from ..stages.seeds import Images, images_of
from ..types import Array, Embeddings, Labels, View

Row = dict[str, Any]
Mask = NDArray[np.bool_]
Work = Callable[[], Row]
BATCH = 512  # images seen at a time


@dataclass(frozen=True)
class Training:
    """One training: a method with options on some shards. ``method`` may be "random"."""

    lab: Lab
    folder: Path
    cfg: Config

    @property
    def key(self) -> str:
        """Of all that it depends on."""
        return _trained.digest(self.cfg, self.folder)

    @property
    def work(self) -> Path:
        """Where it is kept."""
        return self.lab.home / "encoders" / f"{self.cfg.pretrain.method}-{self.key}"

    @cached_property
    def encoder(self) -> models.Encoder:
        """Trained now if it has not been.

        Raises:
            HeadwaterError: the guard stopped the training.
        """
        return _trained.fit(self.cfg, self.folder, self.work, self.lab.report)

    @cached_property
    def method(self) -> Any:
        """The whole method in eval mode: encoder, projector, views.

        Raises:
            HeadwaterError: the guard stopped the training.
        """
        _ = self.encoder
        return _trained.whole(self.cfg, self.folder, self.work)

    @property
    def steps(self) -> int:
        """Of the training that has been done."""
        return int(_trained.about(self.work)["steps"])


@dataclass(frozen=True)
class Lab:
    """Sets, trainings and kept rows of a study. ``cfg.bench`` is as the study trains."""

    cfg: Config
    paths: Paths
    report: Reporter

    @property
    def home(self) -> Path:
        """Where everything is kept."""
        return self.paths.runs / "studies"

    @property
    def seeds(self) -> range:
        """Of the trainings."""
        return range(self.cfg.study.seeds)

    def sets(self) -> Iterator[tuple[str, Path]]:
        """The shards of ``study.sets``, made where there are none."""
        where = self.cfg.bench.sets
        for name in self.cfg.study.sets or tuple(where):
            if name not in where:
                rule = f"is not one of bench.sets: {', '.join(where)}"
                raise HeadwaterError(f"study.sets '{name}'", rule, "correct params.yaml")
            yield name, prepared(self.cfg, self.paths, name, where[name], self.report)

    def training(
        self, folder: Path, method: str, seed: int, share: float = 1.0, **options: Any
    ) -> Training:
        """A training to be done, of ``share`` of the compute.

        ``options`` come on top of ``bench.options``.

        Raises:
            HeadwaterError: a method or option that does not exist.
        """
        own = {**self.cfg.bench.options.get(method, {}), **options}
        arm = Arm(method=method, changes={"options": own})
        cfg = _trained.training(self.cfg, arm, seed, "study")
        bench = cfg.bench.model_copy(update={"teraflops": cfg.bench.teraflops * share})
        return Training(self, folder, cfg.model_copy(update={"bench": bench}))

    def subject(self, encoder: models.Encoder, images: Images) -> Subject:
        """An encoder as analyses take it, on all images of some shards."""
        colour = models.normalisation(images.reader.channels)
        rows = embed.with_features(images.rows, features(encoder, images))
        is_train = images.split == "train"
        return Subject("study", encoder, colour, images.reader, rows, is_train)

    def row(self, facts: Row, depends: list[Any], work: Work) -> Row:
        """``facts`` and what ``work`` measures, kept by ``depends``; or ``failed`` and why."""
        file = self.home / "rows" / f"{sha256_json([facts, *depends])[:16]}.json"
        if not file.exists():
            try:
                found = work()
            except HeadwaterError as error:
                found = {"failed": str(error)}
            write_json(file, facts | found)
        kept: Row = read_json(file)
        numbers = [f"{k} {v:.3g}" for k, v in kept.items() if k not in facts and _number(v)]
        said = kept.get("failed") or ", ".join(numbers[:6])
        self.report.log(f"{' '.join(f'{k}={v}' for k, v in facts.items())}: {said}")
        return kept


def _number(value: Any) -> bool:
    return isinstance(value, float)


@contextmanager
def opened(name: str, cfg: Config, paths: Paths, quick: bool) -> Iterator[Lab]:
    """A lab for the study ``name``; ``quick``: two seeds and a tenth of the compute."""
    study = cfg.study
    if quick:
        changes = {"seeds": 2, "teraflops": study.teraflops / 10}
        study = study.model_copy(update=changes)
    bench = cfg.bench.model_copy(update={"teraflops": study.teraflops})
    with Reporter(f"study {name}") as report:
        yield Lab(cfg.model_copy(update={"study": study, "bench": bench}), paths, report)


# ---- what is measured of a training ------------------------------------------------------------


@torch.inference_mode()
def through(module: nn.Module, features: Array) -> Array:
    """(N, D) through a head in eval mode."""
    device = next(module.parameters(), torch.empty(0)).device
    out: Array = module.eval()(torch.from_numpy(features).to(device)).float().cpu().numpy()
    return out


def features(encoder: models.Encoder, images: Images) -> Array:
    """Pooled features (N, D) of all images."""
    return embed.compute(encoder, images.reader, *models.normalisation(images.reader.channels))


def seen(encoder: models.Encoder, images: Images, mask: Mask) -> Embeddings:
    """The images where ``mask`` (N,) holds, with their features."""
    rows = np.flatnonzero(mask)
    net, colour = embed.ready(encoder), models.normalisation(images.reader.channels)
    parts = [
        embed.forward(net, images.reader.take(rows[i : i + BATCH]), *colour)
        for i in range(0, len(rows), BATCH)
    ]
    blank = embed.rows(images.rows, mask)
    return embed.with_features(blank, np.concatenate(parts))


def named(train: Embeddings, test: Embeddings) -> dict[str, Labels]:
    """What nearest neighbours and a linear probe call the test rows, (M,) each."""
    head = linear.fit(train)
    return {
        "knn": knn.predict(train, test.features),
        "linear": linear.named(head, train, test.features),
    }


def shares(given: dict[str, Labels], test: Embeddings) -> dict[str, float]:
    """Accuracy; and as ``*_chance`` without what guessing gets right.

    (a - 1/C) / (1 - 1/C) for C classes of the test rows: 0 for guessing, 1 for all right.
    """
    chance = 1 / max(2, len(np.unique(test.labels)))
    found = {k: float((v == test.labels).mean()) for k, v in given.items()}
    return found | {f"{k}_chance": (v - chance) / (1 - chance) for k, v in found.items()}


def accuracies(train: Embeddings, test: Embeddings) -> dict[str, float]:
    """Of both probes."""
    return shares(named(train, test), test)


def pooled(encoder: models.Encoder, x: Tensor) -> Array:
    """Pooled features (N, D) of normalised images (N, C, S, S)."""
    net = embed.ready(encoder)
    return embed.forward_views(net, x.to(next(encoder.parameters()).device))


def views_of(encoder: models.Encoder, pixels: Tensor, views: list[View], seed: int) -> list[Array]:
    """Pooled features (N, D) of each view of images uint8 (N, C, S, S), drawn by ``seed``."""
    augment = Augmenter(views, *models.normalisation(pixels.shape[1]))
    made = augment(pixels, torch.Generator().manual_seed(seed))
    return [pooled(encoder, view) for view in made]


def images(folder: Path, lab: Lab) -> Images:
    """All images of some shards."""
    return images_of(folder, lab.cfg.bench.image_size)
