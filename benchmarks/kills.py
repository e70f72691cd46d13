"""Does training survive kill -9 at any moment, to the bit?

    python benchmarks/kills.py [--kills 50] [--method dino] [--steps 300] [--seed 0] [--save]

Trains a tiny ViT on scikit-learn's digits once without a break. Then it starts the same training
again and again, each time killing its whole process group after a delay that is log-uniform, so
that start, restoring, steps and the writing of checkpoints are all hit. When a training comes to
its end in spite of that, its log and weights must be equal to the first in every byte; the next
one begins, until there were enough kills.

Processes are forked from one that has imported torch and built nothing: a start takes part of a
second and not ten. What a kill hit is read from what it left on disk. ``--save`` writes
``results/kills.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; a fork must not inherit threads

IMAGES, BATCH, SIDE = 300, 16, 16
SHORTEST = 0.02  # seconds until a kill; the longest is the length of a training
RESULT = Path(__file__).resolve().parent / "results" / "kills.json"
PRODUCT = ("encoder.safetensors", "log.jsonl", "lineage.json")
OPTIONS = {
    "dino": {"prototypes": 32, "hidden": 32, "bottleneck": 16, "locals_": 2},
    "mae": {"decoder_dim": 16, "decoder_heads": 2},
    "simclr": {"hidden": 32, "out": 16},
}


def prepare(root: Path, method: str, steps: int, seed: int) -> None:
    """Shards of digits and params.yaml."""
    import numpy as np
    import yaml
    from PIL import Image
    from sklearn.datasets import load_digits

    from ssl_core import artifacts, shards
    from ssl_core.config import Paths

    samples = []
    for i, flat in enumerate(load_digits().data[:IMAGES]):
        data = io.BytesIO()
        picture = Image.fromarray((flat.reshape(8, 8) * 15).astype(np.uint8)).convert("RGB")
        picture.resize((SIDE, SIDE)).save(data, "PNG")
        names = ("train", f"{i:064x}", "png", data.getvalue(), None, f"g{i}", "digits")
        samples.append(shards.Sample(*names))
    folder = Paths(root).shards
    folder.mkdir(parents=True)
    shards.write(folder, samples, 2**16, SIDE)
    artifacts.write_json(folder / artifacts.LINEAGE, {"stage": "shard", "images": IMAGES})
    vit = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    section = {
        "method": method,
        "options": OPTIONS[method],
        "backbone_args": vit,
        "image_size": SIDE,
        "crop_size": SIDE,
        "epochs": steps * BATCH / IMAGES,
        "batch_size": BATCH,
        "checkpoint_steps": 4,
        "precision": "fp32",
        "augment": "device",
    }
    (root / "params.yaml").write_text(yaml.safe_dump({"seed": seed, "pretrain": section}))


def start(root: Path) -> int:
    """`headwater pretrain` in a process group of its own; returns its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(root)
        quiet = os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        from ssl_core.__main__ import app

        app(["pretrain"], standalone_mode=False)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> bool:
    """Wait so long for the process; whether it came to its end, which must be a good one."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if os.waitstatus_to_exitcode(status) != 0:
                raise SystemExit("training failed:\n" + Path("output.txt").read_text())
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001)


def kill(child: int) -> None:
    """End the process group and wait for its end."""
    with contextlib.suppress(ProcessLookupError):  # before setsid: the process alone
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def lines(root: Path) -> int:
    """Steps in the log."""
    return sum(len(p.read_bytes().splitlines()) for p in root.glob("runs/pretrain/*/log.jsonl"))


def phase(root: Path, before: tuple[int, int]) -> str:
    """What was going on, from the files that are left; ``before`` is :func:`state` at the start."""
    notes = {p.stem for p in root.glob("runs/pretrain/*/samples-*.json")}
    tensors = {p.stem for p in root.glob("runs/pretrain/*/samples-*.pt")}
    if [*root.glob("data/products/.pretrain.*"), *root.glob("runs/pretrain/*/tmp*/encoder.*")]:
        return "export"
    if [*root.glob("runs/pretrain/*/.samples-*")] or tensors != notes:
        return "checkpoint write"
    return "start and restore" if state(root) == before else "steps"


def state(root: Path) -> tuple[int, int]:
    """Steps in the log, and when it was last written."""
    times = [p.stat().st_mtime_ns for p in root.glob("runs/pretrain/*/log.jsonl")]
    return lines(root), max(times, default=0)


def product(root: Path) -> dict[str, bytes]:
    """The bytes that must be equal."""
    return {name: (root / "data/products/pretrain" / name).read_bytes() for name in PRODUCT}


def reset(root: Path) -> None:
    """As if nothing had been trained."""
    for folder in ("runs", "data/products/pretrain"):
        shutil.rmtree(root / folder, ignore_errors=True)


def run(root: Path, kills: int, seed: int) -> tuple[Counter[str], int, float]:
    """Kill so often: what was hit, how many trainings came to their end, seconds of one."""
    began = time.monotonic()
    ended(start(root), math.inf)
    seconds = time.monotonic() - began
    expected, hits, trained, rng = product(root), Counter[str](), 0, random.Random(seed)
    while sum(hits.values()) < kills:
        reset(root)
        done = False
        while not done:
            left = kills - sum(hits.values())
            delay = math.exp(rng.uniform(math.log(SHORTEST), math.log(seconds)))
            before, child = state(root), start(root)
            done = ended(child, delay if left else math.inf)
            if not done:
                kill(child)
                hits[phase(root, before)] += 1
        trained += 1
        for name, data in product(root).items():
            if data != expected[name]:
                raise SystemExit(f"{name} differs after {sum(hits.values())} kills (seed {seed})")
    return hits, trained, seconds


def save(given: argparse.Namespace, hits: Counter[str], trained: int, seconds: float) -> None:
    """What was killed where; nothing is written unless every training was equal."""
    import torch

    from ssl_core.artifacts import write_json

    found = {
        "about": {k: v for k, v in vars(given).items() if k != "save"}
        | {"torch": torch.__version__},
        "kills": dict(hits.most_common()),
        "seconds_without_a_break": round(seconds, 1),
        "trainings": trained,
        "equal_in_every_byte": list(PRODUCT),
    }
    write_json(RESULT, found)


def main() -> None:
    """Read the command line, print what was hit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--method", choices=sorted(OPTIONS), default="dino")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write results/kills.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        root = Path(name)
        prepare(root, given.method, given.steps, given.seed)
        import timm  # noqa: F401  (once, for all processes)

        from ssl_core.stages import pretrain  # noqa: F401

        hits, trained, seconds = run(root, given.kills, given.seed)
    if given.save:
        save(given, hits, trained, seconds)
    print(f"{given.method}, {given.steps} steps, {seconds:.1f} s without a break")
    for what, count in hits.most_common():
        print(f"{count:>5}  kills in {what}")
    print(f"{sum(hits.values()):>5}  kills in {trained} trainings, each equal in every byte")


if __name__ == "__main__":
    main()
