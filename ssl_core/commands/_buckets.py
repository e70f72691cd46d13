"""Shards in a bucket that nothing refers to any more (``headwater clean --shards``).

What refers to shards: the product here, every git revision (its dvc.lock, read through DVC's
cache), and every model of the registry. Where one of these cannot be read, nothing is listed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import LINEAGE, read_json
from ..errors import HeadwaterError
from ..store import ABOUT
from ._sides import blobs_of, git

if TYPE_CHECKING:
    from ..config import Paths

PRODUCT = "data/products/shards"
FETCH = f"dvc fetch --all-commits {PRODUCT}, then clean again"


def referred(paths: Paths) -> set[str]:
    """sha256 of the index.json of all shards that something refers to.

    Raises:
        HeadwaterError: a revision or model whose shards cannot be told.
    """
    by_lineage: dict[str, str] = {}  # of lineage.json -> of index.json
    if (paths.shards / ABOUT).exists():
        known = {n: (paths.shards / n).read_bytes() for n in (ABOUT, LINEAGE)}
        by_lineage[_digest(known[LINEAGE])] = _digest(known[ABOUT])
    for md5, commits in revisions(paths.root).items():
        files = blobs_of(paths.root, "shards", md5)
        found = {n: files.get(("shards", n)) for n in (ABOUT, LINEAGE)}
        if not all(f and f.exists() for f in found.values()):
            rule = "has shards that are not in DVC's cache, so nobody can tell where they are"
            raise HeadwaterError(f"commit {commits[0][:10]}", rule, FETCH)
        read = {n: f.read_bytes() for n, f in found.items() if f}
        by_lineage[_digest(read[LINEAGE])] = _digest(read[ABOUT])
    return set(by_lineage.values()) | _of_models(paths, by_lineage)


def revisions(root: Path) -> dict[str, list[str]]:
    """DVC's hash of the shards -> commits that hold it; of all branches, tags and the reflog.

    Raises:
        HeadwaterError: git does not tell all of them.
    """
    import yaml

    _whole(root)
    texts = {"here": (root / "dvc.lock").read_text()} if (root / "dvc.lock").exists() else {}
    for commit in git(root, "rev-list", "--all", "--reflog", "--", "dvc.lock").split():
        texts[commit] = git(root, "show", f"{commit}:./dvc.lock")
    found: dict[str, list[str]] = {}
    for commit, text in texts.items():
        for stage in ((yaml.safe_load(text) or {}).get("stages") or {}).values():
            for out in stage.get("outs", ()):
                if out["path"] == PRODUCT:
                    found.setdefault(out["md5"], []).append(commit)
    return found


def _whole(root: Path) -> None:
    """That git knows all that it could know. Without a repository there is nothing to know."""
    here = any((p / ".git").exists() for p in (root.absolute(), *root.absolute().parents))
    if here and git(root, "rev-parse", "--is-shallow-repository").strip() != "false":
        fix = "install git; git fetch --unshallow"
        raise HeadwaterError(root.absolute(), "has a history that git does not tell whole", fix)


def _of_models(paths: Paths, by_lineage: dict[str, str]) -> set[str]:
    """Shards that registered models were trained on; old cards name their lineage only."""
    found = set()
    for file in sorted(paths.registry.glob("models/*/card.json")):
        card: dict[str, Any] = read_json(file)
        lineage = (card.get("lineage") or {}).get("shards", "")
        index = card.get("index") or by_lineage.get(lineage)
        if index is None:
            rule = "does not say which shards it was trained on, and no revision here has them"
            fix = "headwater clean --models DAYS drops it, if it is retired"
            raise HeadwaterError(f"model {file.parent.name}", rule, fix)
        found.add(index)
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
