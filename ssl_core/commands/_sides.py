"""What ``headwater diff`` compares: a project, a product, a registered model or a git revision."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import LINEAGE, read_json
from ..config import Paths
from ..errors import HeadwaterError
from ._common import PRODUCTS
from ._state import champion

Flat = dict[str, Any]


@dataclass
class Side:
    """One side. ``read(product, file)`` gives bytes, or None where they are not at hand."""

    name: str
    kind: str
    params: Flat = field(default_factory=dict)
    counts: Flat = field(default_factory=dict)
    metrics: Flat = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)  # product -> where it lies
    blobs: dict[tuple[str, str], Path] = field(default_factory=dict)  # of DVC's cache

    def read(self, product: str, file: str) -> bytes | None:
        """The bytes of one file of a product."""
        path = self.blobs.get((product, file))
        if path is None and product in self.folders:
            path = self.folders[product] / file
        return path.read_bytes() if path is not None and path.exists() else None

    def json(self, product: str, file: str) -> Any:
        """The same, parsed."""
        data = self.read(product, file)
        return None if data is None else json.loads(data)

    def frame(self, product: str, file: str) -> Any:
        """A .parquet or .csv of a product as a pandas frame, or None."""
        import pandas as pd

        data = self.read(product, file)
        if data is None:
            return None
        stream = io.BytesIO(data)
        return pd.read_parquet(stream) if file.endswith(".parquet") else pd.read_csv(stream)


def side(name: str, paths: Paths) -> Side:
    """What a word on the command line names.

    Raises:
        HeadwaterError: none of these.
    """
    place = Path(name)
    if (place / LINEAGE).exists():
        return _product(name, place)
    if (place / "data/products").is_dir():
        return _project(name, place)
    model = champion(paths) if name == "champion" else name
    if model and (paths.registry / "models" / model / "card.json").exists():
        return _model(model, paths.registry / "models" / model)
    if commit := _commit(name, paths.root):
        return _revision(name, commit, paths.root)
    rule = "is no project, product, model of the registry or git revision"
    raise HeadwaterError(
        f"'{name}'", rule, "give e.g. HEAD~1, ., champion or data/products/pretrain"
    )


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- kinds -------------------------------------------------------------------------------------


def _product(name: str, place: Path) -> Side:
    record = read_json(place / LINEAGE)
    found = Side(name, "product", folders={PRODUCTS.get(record["stage"], place.name): place})
    return _filled(found)


def _project(name: str, root: Path) -> Side:
    paths = Paths(root)
    places: dict[str, Path] = {p: getattr(paths, p) for p in PRODUCTS.values()}
    folders = {p: f for p, f in places.items() if (f / LINEAGE).exists()}
    found = _filled(Side(name, "project", folders=folders))
    file = root / "params.yaml"
    return _with_params(found, file.read_text() if file.exists() else "")


def _model(name: str, place: Path) -> Side:
    card, meta = read_json(place / "card.json"), read_json(place / "encoder.json")
    hidden = ("files", "lineage", "id", "accuracy")
    params = {f"encoder.{k}": v for k, v in flat(meta) if k != "sha256"}
    counts = {k: v for k, v in flat(card) if k.partition(".")[0] not in hidden}
    found = Side(name, "model", params, counts)
    if card.get("accuracy"):
        found.metrics = {f"accuracy.{k}": v for k, v in card["accuracy"].items()}
    return found


def _revision(name: str, commit: str, root: Path) -> Side:
    """params.yaml and dvc.lock of a commit; the products themselves from DVC's cache."""
    import yaml

    found = Side(name, f"commit {commit[:10]}")
    lock = yaml.safe_load(git(root, "show", f"{commit}:./dvc.lock") or "") or {}
    by_path = {f"data/products/{p}": p for p in PRODUCTS.values()}
    for stage in lock.get("stages", {}).values():
        for out in stage.get("outs", ()):
            if out["path"] in by_path:
                found.blobs |= blobs_of(root, by_path[out["path"]], out["md5"])
    return _with_params(_filled(found), git(root, "show", f"{commit}:./params.yaml") or "")


def blobs_of(root: Path, product: str, md5: str) -> dict[tuple[str, str], Path]:
    """Files of a folder that DVC keeps; empty where the cache does not have it."""
    cache = root / ".dvc/cache/files/md5"
    index = cache / md5[:2] / md5[2:]
    if not index.exists():
        return {}
    files = json.loads(index.read_text())
    return {(product, f["relpath"]): cache / f["md5"][:2] / f["md5"][2:] for f in files}


def _commit(name: str, root: Path) -> str:
    if name.startswith("-"):  # git would take it for an option
        return ""
    return git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()


def git(root: Path, *words: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


# ---- what they hold ----------------------------------------------------------------------------


def _filled(found: Side) -> Side:
    """Counts, configuration and metrics of all products at hand."""
    for stage, product in PRODUCTS.items():
        record = found.json(product, LINEAGE)
        if record:
            found.counts |= {f"{stage}.{k}": v for k, v in flat(record["counts"])}
            found.params |= {f"{stage}.{k}": v for k, v in flat(record["config"])}
    metrics = found.json("evaluation", "metrics.json")
    found.metrics |= dict(flat(metrics)) if metrics else {}
    decision = found.json("promotion", "decision.json")
    for key in ("promoted", "difference") if decision else ():
        found.metrics[f"promotion.{key}"] = decision[key]
    return found


def _with_params(found: Side, text: str) -> Side:
    """What params.yaml says stands above what products were made with."""
    import yaml

    found.params |= dict(flat(yaml.safe_load(text) or {}))
    return found


def told(a: Side, b: Side) -> Any:
    """Held-out images that both sides name, joined by content; None where one side has none."""
    one, two = (s.frame("evaluation", "test_predictions.parquet") for s in (a, b))
    if one is None or two is None:
        return None
    columns = ["sha256", "prediction", "confidence", "correct"]
    return one[["label", *columns]].merge(two[columns], on="sha256", suffixes=("_a", "_b"))
