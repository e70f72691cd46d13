"""JPEG files or shards to ready batches of views, per core, against lightly and torchvision.

Equal output shapes and the same augmentation: crop scale and aspect, flip, jitter, grey, blur and
its sigma, solarise, each with lightly's own probabilities and strengths. Every side decodes, makes
all views, normalises and collates float32 batches with one thread:

- ours: ShardReader with one thread, then the Augmenter with one thread of torch; the process is
  bound to one core, which decoding and augmenting share.
- lightly: LightlyDataset and its transform in a DataLoader, num_workers=0 on the same core.
- torchvision: transforms.v2 on uint8 tensors, decoded by torchvision.io, the same DataLoader.

Two sources: files as they come (500×375) and files scaled to 256 when the shards were written (as
a user would for 224-pixel crops); peers get the same size of file in each.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import _common, _images
from ssl_core.augment import Augmenter
from ssl_core.parallel import keep_memory
from ssl_core.reader import ShardReader
from ssl_core.types import View

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, COUNT, SIDE = 32, 192, 256
COLOURS: dict[str, Any] = {"jitter_p": 0.8, "grey": 0.2, "blur_sigma": (0.1, 2.0)}
SIMCLR = [View(224, (0.08, 1.0), 2, jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5, **COLOURS)]
DINO = [
    View(224, (0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=1.0, **COLOURS),
    View(224, (0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=0.1, solarise=0.2, **COLOURS),
    View(96, (0.05, 0.4), 6, jitter=(0.4, 0.4, 0.2, 0.1), blur=0.5, **COLOURS),
]
RECIPES = {"SimCLR 2×224": SIMCLR, "DINO 2×224+6×96": DINO}


class Ours:
    """An endless stream of batches from shards."""

    def __init__(self, tars: Path, views: list[View], threads: int = 1) -> None:
        keep_memory()  # as training does; peers in this process gain as well
        # No cache: every image is decoded each time, as in an epoch over many.
        self.reader = ShardReader(tars, "train", SIDE, threads=threads, cache_bytes=0)
        self.augment = Augmenter(views, MEAN, STD)
        self.batches = enumerate(self.reader.batches(BATCH))

    def __call__(self) -> list[Tensor]:
        number, (_, images) = next(self.batches)
        return self.augment(images, torch.Generator().manual_seed(number))


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def lightly_batches(files: Path, name: str, workers: int = 0) -> Iterator[Any]:
    """lightly's own data set and transform, at its default settings."""
    from lightly.data import LightlyDataset
    from lightly.transforms import DINOTransform, SimCLRTransform

    transform = SimCLRTransform() if name.startswith("SimCLR") else DINOTransform()
    data = LightlyDataset(str(files), transform=transform)
    return _endless(DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers))


def _pipeline(view: View) -> Callable[[Tensor], Tensor]:
    """torchvision v2 on uint8, converted to float last."""
    from torchvision.transforms import v2

    steps: list[Any] = [
        v2.RandomResizedCrop(view.size, view.scale, antialias=True),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_p),
        v2.RandomGrayscale(view.grey),
        v2.RandomApply([v2.GaussianBlur(view.size // 10 | 1, view.blur_sigma)], view.blur),
        v2.RandomSolarize(128, view.solarise),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    return v2.Compose(steps)


class Files(Dataset[list[Tensor]]):
    """JPEG files through torchvision's decoder and transforms.v2."""

    def __init__(self, files: Path, views: list[View]) -> None:
        self.paths = sorted(files.glob("*.jpg"))
        self.pipelines = [_pipeline(view) for view in views for _ in range(view.count)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Tensor]:
        from torchvision.io import decode_jpeg, read_file

        image = decode_jpeg(read_file(str(self.paths[index])))
        return [pipeline(image) for pipeline in self.pipelines]


def torchvision_batches(files: Path, views: list[View], workers: int = 0) -> Iterator[Any]:
    data = Files(files, views)
    return _endless(DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers))


def _work(step: Callable[[], Any], batches: int) -> _common.Work:
    def work() -> int:
        for _ in range(batches):
            step()
        return batches * BATCH

    return work


def _check(one: list[Tensor], other: list[Tensor]) -> None:
    shapes = [tuple(v.shape) for v in one]
    assert shapes == [tuple(v.shape) for v in other], "unequal work"
    assert all(v.dtype == torch.float32 for v in [*one, *other])


def run(rounds: int = 5) -> dict[str, Any]:
    """Measure; about two minutes."""
    _common.one_core()
    rows: list[_common.Row] = []
    with tempfile.TemporaryDirectory() as name:
        for side in (500, SIDE):
            files, tars = _images.write(Path(name), COUNT, side)
            for recipe, views in RECIPES.items():
                ours = Ours(tars, views)
                peer = lightly_batches(files, recipe)
                vision = torchvision_batches(files, views)
                _check(ours(), next(peer)[0])
                _check(ours(), next(vision))
                cases = {
                    "headwater": _work(ours, 4),
                    "lightly": _work(lambda peer=peer: next(peer), 1),
                    "torchvision v2": _work(lambda vision=vision: next(vision), 1),
                }
                group = f"{recipe}, JPEG {side} px"
                rows += _common.compare(group, cases, "lightly", rounds, warmup=1)
    return _common.report(
        "data_path",
        "Data path, one core: JPEG to normalised float32 batches",
        rows,
        batch=BATCH,
        images=f"{COUNT} crops of photographs, JPEG quality {_images.QUALITY}",
        ours=f"reader canvas {SIDE} px (white where the image is not square)",
        peers=_common.versions("lightly", "torchvision"),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run()
