"""Training state on disk: atomic, checksummed, the old one deleted last, no pickle of code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from .artifacts import atomic_file, read_json, sha256_file, write_json

KEEP = 2


def _steps(folder: Path) -> list[tuple[int, Path]]:
    found = ((re.fullmatch(r"step-(\d+)\.pt", p.name), p) for p in folder.glob("step-*.pt"))
    return sorted((int(m[1]), p) for m, p in found if m)


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` for ``step`` with its checksum beside it, then drop all but the last two."""
    path = folder / f"step-{step:07d}.pt"
    with atomic_file(path) as temp:
        torch.save(state, temp)
    write_json(path.with_suffix(".json"), {"step": step, "sha256": sha256_file(path)})
    for _, old in _steps(folder)[:-KEEP]:
        old.unlink()
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def _whole(path: Path) -> bool:
    note = path.with_suffix(".json")
    return note.exists() and read_json(note)["sha256"] == sha256_file(path)


def latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest state whose checksum holds, or None; damaged ones are passed over."""
    for step, path in reversed(_steps(folder)):
        if _whole(path):
            return step, torch.load(path, map_location="cpu", weights_only=True)
    return None
