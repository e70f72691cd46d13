"""What commands share: the chain, options, settings, and how a result is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadwaterError

if TYPE_CHECKING:
    from ..config import Config

# Stages of the versioned chain, in order; dvc.yaml holds the same (a test compares them).
CHAIN = {
    "ingest": "read every source into one manifest; unreadable images are listed with a reason",
    "validate": "check the manifest (Great Expectations) and the images; may block the chain",
    "seed_embed": "features of a pinned encoder, for curation only",
    "curate": "split without leaks, drop duplicates, balance clusters",
    "shard": "write byte-deterministic WebDataset tars with an index",
    "pretrain": "train the encoder without labels; continues after a crash",
    "embed": "features of the new encoder",
    "evaluate": "kNN, linear probe, RankMe beside random init, raw pixels and the seed encoder",
    "promote": "make it champion if it is proven better and nowhere proven worse",
}
PRODUCTS = {  # stage -> its folder, an attribute of config.Paths
    "ingest": "manifest",
    "validate": "validation",
    "seed_embed": "seed_embeddings",
    "curate": "curated",
    "shard": "shards",
    "pretrain": "pretrain",
    "embed": "embeddings",
    "evaluate": "evaluation",
    "promote": "promotion",
}
Params = Annotated[Path, typer.Option("--params", "-p", help="configuration file")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="override, e.g. -s pretrain.epochs=5")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
DEFAULT = Path("params.yaml")
LOGIN = re.compile(r"(?<=://)[^/@\s]+@")  # a name and password within an address


def overrides(changes: list[str] | None) -> dict[str, Any]:
    """``--set a.b=value`` as {"a.b": value}.

    Raises:
        HeadwaterError: not of this form.
    """
    import yaml

    pairs = [c.partition("=") for c in changes or []]
    for key, sign, _ in pairs:
        if not sign:
            raise HeadwaterError(f"--set {key}", "is not key=value", "write e.g. pretrain.epochs=5")
    return {k: yaml.safe_load(v) for k, _, v in pairs}


def settings(params: Path, changes: list[str] | None = None) -> Config:
    """The configuration with what ``--set`` changes.

    Raises:
        HeadwaterError: a file that was asked for is not there, or it is not valid.
    """
    from ..config import load

    if params != DEFAULT and not params.exists():
        raise HeadwaterError(f"--params {params}", "is not there", "give the path of a params.yaml")
    return load(params, overrides(changes))


def emit(value: Any) -> None:
    """Print JSON; addresses lose the login they may hold."""
    print(LOGIN.sub("***@", json.dumps(value, indent=1, default=str)))


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a flat result for people, or as JSON."""
    if as_json:
        emit(result)
        return
    for key, value in result.items():
        print(f"{key:>24}  {value}")


def table(rows: Iterable[Sequence[object]], indent: int = 2) -> str:
    """Columns of equal width; the last one is as long as it needs to be."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        " " * indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def human(size: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def ago(seconds: float) -> str:
    """How long ago, for people."""
    for unit, length in (("s", 60.0), ("min", 60.0), ("h", 24.0)):
        if seconds < length:
            return f"{seconds:.0f} {unit} ago"
        seconds /= length
    return f"{seconds:.0f} d ago"
