"""A small set of shards and a configuration that trains on it in seconds, without the chain."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ssl_core import job, shards, step
from ssl_core.artifacts import write_json
from ssl_core.config import Config, Paths
from ssl_core.preemption import Preempted

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SIZES = {"hidden": 16, "out": 8}


def images(count: int) -> list[shards.Sample]:
    """scikit-learn's digits at 16 px."""
    found = []
    pixels, labels = load_digits(return_X_y=True)
    for i in range(count):
        small = Image.fromarray((pixels[i].reshape(8, 8) * 15).astype(np.uint8)).convert("RGB")
        data = io.BytesIO()
        small.resize((16, 16), Image.Resampling.BICUBIC).save(data, "PNG")
        key, label = f"{i:064x}", str(labels[i])
        found.append(shards.Sample("train", key, "png", data.getvalue(), label, f"g{i}", "digits"))
    return found


def write(root: Path, count: int = 75) -> Paths:
    """data/products/shards below ``root``."""
    paths = Paths(root)
    paths.shards.mkdir(parents=True)
    shards.write(paths.shards, images(count), 2**15, 16)
    write_json(paths.shards / "lineage.json", {"stage": "shard", "count": count})
    return paths


def config(**pretrain: Any) -> Config:
    """SimCLR on a tiny ViT; 4 epochs."""
    section = {
        "method": "simclr",
        "options": SIZES,
        "backbone_args": VIT,
        "image_size": 16,
        "crop_size": 16,
        "epochs": 4,
        "batch_size": 8,
        "checkpoint_steps": 4,
        "precision": "fp32",
        "augment": "device",
    }
    return Config.model_validate({"pretrain": section | pretrain})


@contextlib.contextmanager
def preempted(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """A training within is preempted before step ``at``."""
    take = step.take

    def stopping(run: job.Run, batches: Any, number: int) -> Any:
        if number == at:
            raise Preempted(15)
        return take(run, batches, number)

    with monkeypatch.context() as patch:
        patch.setattr(step, "take", stopping)
        with pytest.raises(Preempted):
            yield
