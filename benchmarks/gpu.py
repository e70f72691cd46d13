"""Whole trainings on one GPU: images per second, share of its peak, memory, and where time goes.

    python -m benchmarks.gpu [--cases "simclr ViT-S/16" ...] [--steps 100]

Everything is as ``headwater pretrain`` does it: JPEG shards of 256 px, reader, views of 224 px,
the step, checkpoints. Numbers are the run's own telemetry, medians over steps; the first step is
told apart, since it holds what torch.compile takes. Each case is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import _common, _images
from ssl_core import shards
from ssl_core.artifacts import read_json, write_json

# So many samples that the reader keeps none decoded (reader.CACHE_LEAST), as with millions.
SIDE, PHOTOGRAPHS, TIMES = 256, 1024, 14
COUNT = PHOTOGRAPHS * TIMES
SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
ADAMW = {"options": {"optimizer": "adamw", "lr": 5e-4, "betas": [0.9, 0.999]}}
CASES: dict[str, dict[str, Any]] = {
    "simclr ViT-S/16": {"method": "simclr", "backbone": SMALL} | ADAMW,
    "simclr ViT-S/16, not compiled": {"method": "simclr", "backbone": SMALL, "compile": "off"}
    | ADAMW,
    "simclr ViT-S/16, fp32": {"method": "simclr", "backbone": SMALL, "precision": "fp32"} | ADAMW,
    "simclr ResNet-50": {"method": "simclr", "backbone": "resnet50"} | ADAMW,
    "simclr ResNet-50, not compiled": {"method": "simclr", "backbone": "resnet50", "compile": "off"}
    | ADAMW,
    "dino ViT-S/16": {"method": "dino", "backbone": SMALL},
    "dino ViT-S/16, not packed": {"method": "dino", "backbone": SMALL, "packing": "off"},
    "dinov2 ViT-B/16": {"method": "dinov2", "backbone": BASE, "batch_size": 128},
    "dinov2 ViT-B/16, blocks computed again": {
        "method": "dinov2",
        "backbone": BASE,
        "batch_size": 128,
        "activation_checkpointing": True,
    },
    "mae ViT-B/16": {"method": "mae", "backbone": BASE},
}


def write(folder: Path) -> None:
    """Shards of photographs, each several times under other keys."""
    folder.mkdir()
    size = (SIDE, round(SIDE * _images.HEIGHT / _images.WIDTH))
    made = [
        _images.jpeg(image.resize(size, Image.Resampling.BICUBIC))
        for image in _images.photographs(PHOTOGRAPHS)
    ]
    keys = [f"{i:064x}" for i in range(COUNT)]
    samples = [
        shards.Sample("train", key, "jpg", made[i % PHOTOGRAPHS], str(i % 10), key, "bench")
        for i, key in enumerate(keys)
    ]
    shards.write(folder, samples, 32 * 2**20, SIDE)


def config(case: str, steps: int) -> Any:
    """The configuration of a case, so many steps long."""
    from ssl_core.config import Config

    section = {
        "recipe": "paper",
        "image_size": SIDE,
        "crop_size": 224,
        "batch_size": 256,
        "checkpoint_steps": 50,
        "compile": "on",  # as auto does in a long run
    } | CASES[case]
    is_vit = str(section["backbone"]).startswith("vit")
    section["backbone_args"] = {"img_size": 224, "dynamic_img_size": True} if is_vit else {}
    section["epochs"] = steps * section["batch_size"] / COUNT
    return Config.model_validate({"pretrain": section})


def one(case: str, tars: Path, steps: int) -> dict[str, Any]:
    """Train; what its telemetry says."""
    from ssl_core import telemetry, train
    from ssl_core.artifacts import read_lines
    from ssl_core.progress import Reporter

    cfg = config(case, steps)
    with tempfile.TemporaryDirectory() as name, Reporter("gpu") as report:
        train.fit(cfg, tars, Path(name), report)
        file = Path(name) / telemetry.FILE
        lines = read_lines(file)
        losses = [r["loss"] for r in read_lines(Path(name) / train.LOG)]
        about = next(r["about"] for r in lines if "about" in r)
        first = next(r["seconds"] for r in lines if r.get("step") == 0)
        found = telemetry.summary(file)
    p = cfg.pretrain
    more = {"case": case, "batch": p.batch_size, "first_step_seconds": first}
    return more | {"about": about, "loss": [losses[0], losses[-1]]} | found


def row(r: dict[str, Any]) -> str:
    parts = [f"{r.get(f'share/{n}', 0):.0%}" for n in ("wait", "augment", "forward_backward")]
    rate, mfu, memory = r["images_per_second"], r.get("mfu", 0), r["peak_bytes"] / 2**30
    cells = [r["case"], r["batch"], f"{rate:,.0f}", f"{mfu:.0%}", f"{memory:.1f}", *parts]
    cells += [r["about"].get("augment", ""), f"{r['first_step_seconds']:.0f}"]
    return "| " + " | ".join(str(c) for c in cells) + " |"


HEAD = """\
| | batch | img/s | of peak | GiB | waits | views | passes | views made by | first step, s |
|-|-|-|-|-|-|-|-|-|-|"""


def main() -> None:
    """Print the table and write ``results/gpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SHARDS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], Path(given.one[1]), given.steps)))
        return
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name:
        write(tars := Path(name) / "shards")
        for case in given.cases:
            command = [sys.executable, "-m", "benchmarks.gpu", "--steps", str(given.steps)]
            done = subprocess.run([*command, "--one", case, str(tars)], capture_output=True)
            if done.returncode:
                print(f"{case}: {done.stderr.decode()[-1500:]}", flush=True)
                continue
            found = json.loads(done.stdout.decode().strip().split("\n")[-1])
            print(row(found), flush=True)
            keep(found | {"steps": given.steps, "machine": _common.machine()})


def keep(found: dict[str, Any]) -> None:
    """The row in ``results/gpu.json``, in the order of CASES."""
    file = _common.RESULTS / "gpu.json"
    rows = {r["case"]: r for r in read_json(file)["rows"]} if file.exists() else {}
    rows[found["case"]] = found
    write_json(file, {"rows": [rows[case] for case in CASES if case in rows]})


if __name__ == "__main__":
    main()
