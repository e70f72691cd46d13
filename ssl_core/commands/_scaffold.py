"""The files of a new project: params.yaml with what differs, dvc.yaml, and what git leaves out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import forgotten
from ..artifacts import write_bytes
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..s3 import SCHEME
from ..sources import webdataset
from ..stages import _corrections, _facts, recommend
from ._common import LOGIN
from ._look import Found

STEP, LEAST_SIDE = 16, 32  # image sides are multiples of a ViT's patch; below 32 px CNNs see little
HEAD = "# What differs from the defaults; `headwater config show` has all. By `headwater init`."
GRAPH_HEAD = "# The graph of record. Every command is one stage of `headwater`."
IGNORED = "/raw\n/deploy\n/products\n/history\n/registry\n/collected/*\n!/collected/.gitkeep\n"
DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
[cache]
    type = "reflink,copy"
"""


def params(found: Found, source: str, minutes: float) -> dict[str, Any]:
    """The tree of params.yaml for what was found, by the rules of ``headwater recommend``."""
    hours = minutes / 60
    given: dict[str, Any] = {
        "images": max(found.images, recommend.LEAST),
        "classes": len(found.classes),
        "tail": found.tail,
        "labels": found.labelled / found.listed,
        "compute": str(hours) if has_gpu() else "cpu",
    }
    tree: dict[str, Any] = {"seed": 0, "data": _data(found, source), "validate": _limits(found)}
    advised = recommend.run(Config(), Paths("nowhere"), **given)["params"]
    side = _side(found, advised["pretrain"]["image_size"])
    tree |= {"curate": _curate(found), "shard": {"max_side": side}}
    tree["pretrain"] = _pretrain(advised["pretrain"], found, side, minutes)
    # DVC wants every section that a stage depends on, empty ones too.
    sections = (name for stage in template()["stages"].values() for name in stage["params"])
    return tree | {name: {} for name in sections if name not in tree}


def has_gpu() -> bool:
    """Whether torch finds one."""
    import torch

    return torch.cuda.is_available()


def _data(found: Found, source: str) -> dict[str, Any]:
    data: dict[str, Any] = {"sources": [source, "data/collected"]}
    if found.channels != 3:
        data["channels"] = found.channels
    if found.sizes["shortest"] < Config().data.min_side:
        data["min_side"] = max(4, found.sizes["shortest"])
    return data


def _limits(found: Found) -> dict[str, Any]:
    """Where the defaults would stop the chain for what is no fault of such data."""
    limits: dict[str, Any] = {}
    if found.images < 1.2 * Config().validate_.min_images:
        least = max(recommend.LEAST, int(0.8 * found.images))
        limits["min_images"] = min(found.images, least)
    if len(found.classes) < 2:
        limits |= {"min_classes": 0, "max_unlabelled_share": 1.0}
    return limits


def _curate(found: Found) -> dict[str, Any]:
    fitting = max(2, found.images // 16)  # some images for each cluster
    return {"clusters": fitting} if fitting < Config().curate.clusters else {}


def _side(found: Found, advised: int) -> int:
    """The advised side, or less where the originals are smaller."""
    median = found.sizes["median"] // STEP * STEP
    return max(LEAST_SIDE, min(advised, median))


def _pretrain(advised: dict[str, Any], found: Found, side: int, minutes: float) -> dict[str, Any]:
    small = advised["crop_size"] < advised["image_size"]
    crop = max(LEAST_SIDE, side // 2 // STEP * STEP) if small else side
    changed = {"image_size": side, "crop_size": crop, "epochs": _epochs(advised, found, minutes)}
    args = dict(advised["backbone_args"])
    if "img_size" in args:
        args["img_size"] = side
    if found.channels != 3:
        args["in_chans"] = found.channels
    return advised | changed | {"backbone_args": args}


def _epochs(advised: dict[str, Any], found: Found, minutes: float) -> float:
    """What the time allows on a CPU; a GPU's hours were given to the rules already."""
    if has_gpu():
        return float(advised["epochs"])
    rate = _facts.RATE[advised["backbone"]] / _facts.VIEWS.get(advised["method"], 2.0)
    allowed = minutes * 60 * rate / max(1, found.images)
    return float(f"{min(advised['epochs'], max(0.5, allowed)):.2g}")


# ---- files -------------------------------------------------------------------------------------


def template() -> dict[str, Any]:
    """The graph of record: dvc.yaml of this checkout, or its copy in the wheel."""
    import yaml

    package = Path(__file__).parent.parent
    file = next(f for f in (package / "dvc.yaml", package.parent / "dvc.yaml") if f.exists())
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def graph(source: str) -> dict[str, Any]:
    """dvc.yaml for one source. DVC cannot see changes in S3 or behind a table: ingest always looks.

    It knows by ETag, size and time what it has read before, and what it finds unchanged makes
    equal bytes: later stages are skipped.
    """
    tree = template()
    ingest = tree["stages"]["ingest"]
    names = [] if source.startswith(SCHEME) else webdataset.expand(source)
    own = ["data/collected", "data/corrections.csv", "data/forgotten.csv"]
    ingest["deps"] = list(dict.fromkeys([*names, *own]))
    if source.startswith(SCHEME) or source.endswith((".csv", ".parquet")):
        ingest["always_changed"] = True
    return tree


def write(project: Path, source: str, tree: dict[str, Any]) -> list[str]:
    """Write the project's files; returns what was made.

    Raises:
        HeadwaterError: the folder holds a project already.
    """
    import yaml

    for name in ("params.yaml", "dvc.yaml"):
        if (project / name).exists():
            fix = "give another folder with --into, or delete the file"
            raise HeadwaterError(project / name, "is there already", fix)
    for folder in ("data/collected", "data/deploy/incoming", "data/deploy/labels"):
        (project / folder).mkdir(parents=True, exist_ok=True)
    graph_text = yaml.safe_dump(graph(source), sort_keys=False, width=100)
    texts = {
        "data/collected/.gitkeep": "",
        "data/corrections.csv": _corrections.HEAD,
        "data/forgotten.csv": forgotten.EMPTY,
        "data/.gitignore": IGNORED,
        ".gitignore": _ignored(source),
        "dvc.yaml": f"{GRAPH_HEAD}\n{graph_text}",
        "params.yaml": f"{HEAD}\n" + yaml.safe_dump(tree, sort_keys=False, width=100),
    }
    made = [name for name in texts if not (project / name).exists()]
    for name in made:
        write_bytes(project / name, texts[name].encode())
    return made


def _ignored(source: str) -> str:
    outside = source.startswith((SCHEME, "data/")) or Path(source).is_absolute()
    own = "" if outside else f"/{source.rstrip('/')}\n"
    return f"/runs/\n/reports/\n/.dagster_home/\n/.service/\n{own}"


def versioned(project: Path) -> list[str]:
    """``git init`` and ``dvc init`` where they are missing and the tools are there.

    Raises:
        HeadwaterError: one of them fails; its own words.
    """
    made, git = [], shutil.which("git")
    if git and not _run(project, git, "rev-parse", "--is-inside-work-tree", check=False):
        _run(project, git, "init", "-q")
        made.append("git init")
    if importlib.util.find_spec("dvc") and not (project / ".dvc").exists():
        inside = git and (project / ".git").exists()
        kind = [] if inside else ["--subdir"] if git else ["--no-scm"]
        _run(project, sys.executable, "-m", "dvc", "init", "-q", *kind)
        write_bytes(project / ".dvc/config", _config(project / ".dvc/config").encode())
        made.append("dvc init")
    return made


def _config(file: Path) -> str:
    """DVC's settings with ours; stages replace outputs whole, so links into the cache are safe."""
    own = file.read_text()
    return DVC_CONFIG + own.replace("[core]\n", "") if "no_scm" in own else DVC_CONFIG


def _run(project: Path, *words: str, check: bool = True) -> bool:
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, env=env, check=False)
    if check and done.returncode:
        said = LOGIN.sub("***@", (done.stderr or done.stdout).strip())
        raise HeadwaterError(" ".join(words[-3:]), f"failed ({said})", "mend that, or delete .dvc")
    return done.returncode == 0 and done.stdout.strip() != "false"
