"""Which checkpoints saw an image: registered models, the latest encoder, trainings, benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import read_lines

if TYPE_CHECKING:
    from ..config import Paths

Row = dict[str, Any]
SEEN = "seen.parquet"
THIS, GROUP = "this image", "another image of its group"


def table(file: Path, condition: Any, columns: list[str] | None = None) -> list[Row]:
    """Rows of a Parquet file that fit; none where there is no file."""
    import pyarrow.parquet as pq

    if not file.exists():
        return []
    found: list[Row] = pq.read_table(file, columns=columns, filters=condition).to_pylist()
    return found


def models(paths: Paths, sha: str, groups: set[str]) -> Iterator[Row]:
    """Everything that was trained on it (or, in the registry, on another image of its group)."""
    states = _states(paths)
    for file in sorted(paths.registry.glob(f"models/*/{SEEN}")):
        name = file.parent.name
        about = {"model": name, "state": states.get(name, "never promoted")}
        if table(file, [("sha256", "==", sha)]):
            yield about | {"trained_on": THIS}
        elif groups and table(file, [("group", "in", sorted(groups))]):
            yield about | {"trained_on": GROUP}
    for folder, state in _folders(paths):
        if table(folder / SEEN, [("sha256", "==", sha)]):
            where = folder.relative_to(paths.root).as_posix()
            yield {"model": where, "state": state, "trained_on": THIS}
    for index in sorted(paths.runs.glob("bench/*/shards/index.parquet")):
        if table(index, [("key", "==", sha), ("split", "==", "train")], ["key"]):
            folder = paths.runs / "bench/encoders" / index.parent.parent.name
            where = folder.relative_to(paths.root).as_posix()
            yield {"model": where, "state": "benchmark", "trained_on": THIS}


def _folders(paths: Paths) -> Iterator[tuple[Path, str]]:
    """The latest encoder, and trainings that are under way or were interrupted."""
    yield paths.pretrain, "latest encoder"
    for folder in sorted(paths.runs.glob("pretrain/*")):
        yield folder, "training"


def _states(paths: Paths) -> dict[str, str]:
    """As registry.states, which imports torch."""
    found: dict[str, str] = {}
    words = {"candidate": "candidate", "approve": "approved", "shadow": "shadow"}
    for entry in read_lines(paths.registry / "log.jsonl"):
        event, name, before = entry["event"], entry["id"], entry.get("previous")
        if event == "reject":
            found[name] = "rejected"
        elif event in words:
            found[name] = words[event]
        elif event in ("promote", "rollback"):
            if before:
                found[before] = "retired" if event == "promote" else "rejected"
            found[name] = "champion"
    return found
