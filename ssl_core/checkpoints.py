"""Training state on disk: atomic, checksummed, read by any number of ranks.

A checkpoint is named by the samples consumed. ``samples-<n>.json`` is its note, written last: a
checkpoint is whole if its note is there and every file it names has the sha256 it names. The
tensors are in ``samples-<n>.pt`` (read with ``weights_only``) or, if they are sharded over
ranks, in a folder ``samples-<n>`` of torch DCP, which any number of ranks can read.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dist
from .artifacts import read_json, sha256_file
from .errors import HeadwaterError

KEEP = 2  # the last ones; beside them the best, and the last healthy one


@dataclass(frozen=True)
class Note:
    """What is known of a checkpoint before its tensors are read."""

    path: Path  # of the note
    samples: int
    files: dict[str, str]  # sha256 by name
    shapes: dict[str, list[int]]  # of the tensors
    facts: dict[str, Any]  # "healthy", "measure" (the larger the better, or None), and others

    @property
    def data(self) -> Path:
        """The file of tensors, or the folder of their shards."""
        file = self.path.with_suffix(".pt")
        return file if file.name in self.files else self.path.with_suffix("")

    def is_whole(self) -> bool:
        """Whether every file is there and unchanged."""
        places = {self.path.parent / name: digest for name, digest in self.files.items()}
        return all(p.exists() and sha256_file(p) == digest for p, digest in places.items())

    def remove(self) -> None:
        """Delete it, the note first: what is left of a crash is no checkpoint."""
        data = self.data
        self.path.unlink(missing_ok=True)
        delete(data)


def notes(folder: Path) -> list[Note]:
    """All checkpoints, damaged ones too, the oldest first."""
    found = (Note(path, **read_json(path)) for path in folder.glob("samples-*.json"))
    return sorted(found, key=lambda note: note.samples)


def latest(folder: Path, healthy: bool = False) -> Note | None:
    """The newest whole checkpoint, or the newest whole and healthy one; None if there is none."""
    wanted = (n for n in reversed(notes(folder)) if n.facts["healthy"] or not healthy)
    return next((n for n in wanted if n.is_whole()), None)


def at(folder: Path, samples: int) -> Note:
    """The checkpoint at so many samples, which is known to be whole."""
    return next(n for n in notes(folder) if n.samples == samples)


def best(folder: Path) -> Note | None:
    """The whole checkpoint with the largest measure, or None."""
    measured = [n for n in notes(folder) if n.facts["measure"] is not None]
    ranked = sorted(measured, key=lambda n: n.facts["measure"], reverse=True)
    return next((n for n in ranked if n.is_whole()), None)


def load(note: Note, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``tensors``, whole or sharded, in place, from either kind of checkpoint.

    Raises:
        HeadwaterError: the checkpoint has other tensors or shapes.
    """
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    if wrong := sorted({n for n, _ in _items(note.shapes) ^ _items(shapes)}):
        raise HeadwaterError(
            note.path,
            f"does not fit this model ({', '.join(wrong[:3])} differ)",
            "delete this folder to begin anew, or go back to the code that wrote it",
        )
    if note.data.suffix == ".pt":
        found = torch.load(note.data, map_location="cpu", weights_only=True, mmap=True)
        for name, tensor in tensors.items():
            _fill(tensor, found[name])
        return
    # Here: its import takes seconds.
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    with warnings.catch_warnings():  # every rank reads its own part: no group is needed
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_shards(dict(tensors), checkpoint_id=note.data, no_dist=True)


def _items(shapes: Mapping[str, list[int]]) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(shape)) for name, shape in shapes.items()}


@torch.no_grad()
def _fill(tensor: Tensor, value: Tensor) -> None:
    if dist.is_sharded(tensor):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(tensor, DTensor)
        where = tensor.device_mesh, tensor.placements
        value = distribute_tensor(value.to(tensor.device), *where, src_data_rank=None)
    tensor.copy_(value)


def forget_after(folder: Path, samples: int) -> None:
    """Delete checkpoints newer than ``samples``."""
    for note in notes(folder):
        if note.samples > samples:
            note.remove()


def prune(folder: Path) -> None:
    """All but the last two, the best, and the last healthy one."""
    found = notes(folder)
    kept = {n.samples for n in found[-KEEP:]}
    kept |= {n.samples for n in [n for n in found if n.facts["healthy"]][-1:]}
    measured = [n for n in found if n.facts["measure"] is not None]
    if measured:
        kept.add(max(measured, key=lambda n: n.facts["measure"]).samples)
    for note in found:
        if note.samples not in kept:
            note.remove()


def sweep(folder: Path) -> None:
    """Delete what a crash left: half-written files, and tensors without a note."""
    whole = {n.data for n in notes(folder)}
    for path in (*folder.glob(".samples-*"), *folder.glob("samples-*")):
        if path not in whole and path.suffix != ".json":
            delete(path)


def delete(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Delete all checkpoints of a finished training."""
    for note in notes(folder):
        note.remove()
