"""Planted duplicates among embedded real images: what the steps find, and what they take wrongly.

``python -m benchmarks.duplicates [--seeds 3]``. Some images get copies: the same bytes, re-encoded,
resized, cropped by up to 6 % a side, brighter or darker, mirrored. Files then go through ingest,
seed_embed and curate as a user's do. Limits were chosen on emoji of seed 0 with five copies
each of 800 images; the other seeds, sets and shares did not take part.

A copy is *found* if it is in its original's duplicate group; an image dropped is *right* if the
image kept for it (``dup_of``) is of its family. ``leak`` is measured without ``near``, which would
leave it nothing: of training images with a family member in the test split, how many go.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

from benchmarks import _planted
from benchmarks._common import RESULTS, machine
from ssl_core.artifacts import write_json
from ssl_core.config import Config, Paths
from ssl_core.stages import curate, ingest, seed_embed

Rng = np.random.Generator
Picture = Image.Image
KINDS = ("bytes", "jpeg", "resized", "cropped", "brightness", "mirrored")
SHARES = (0.05, 0.3)  # of images that have a copy
ORIGINALS = {"emoji": 2000, "digits": 1500, "photographs": 96}
BLIND = {"near_look": 1.01, "near_pixels": 1.01}  # cosine and pHash alone, upright


def tiles() -> list[Picture]:
    """80 px tiles of scikit-learn's two photographs, none overlapping another."""
    from sklearn.datasets import load_sample_images

    return [
        Image.fromarray(image[y : y + 80, x : x + 80])
        for image in load_sample_images().images
        for y in range(0, image.shape[0] - 79, 80)
        for x in range(0, image.shape[1] - 79, 80)
    ]


def originals(name: str, rng: Rng) -> Iterator[Picture]:
    """Different pictures of a set."""
    if name == "photographs":
        yield from tiles()[: ORIGINALS[name]]
        return
    pool: _planted.Pool = {"emoji": _planted.emoji, "digits": _planted.digits}[name]()
    for i in rng.permutation(len(pool.label))[: ORIGINALS[name]]:
        yield pool.make(int(i), rng)


def encode(image: Picture, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def resized(image: Picture, rng: Rng) -> bytes:
    scale = rng.choice([0.6, 0.75, 1.5, 2.0])
    size = (round(image.width * scale), round(image.height * scale))
    return encode(image.resize(size, Image.Resampling.BICUBIC))


def cropped(image: Picture, rng: Rng) -> bytes:
    w, h = image.size
    left, top, right, low = rng.uniform(0, 0.06, 4)
    return encode(
        image.crop((round(left * w), round(top * h), round(w - right * w), round(h - low * h)))
    )


def brightness(image: Picture, rng: Rng) -> bytes:
    low, high = ((0.6, 0.85), (1.15, 1.4))[rng.integers(2)]
    return encode(ImageEnhance.Brightness(image).enhance(rng.uniform(low, high)))


EDITS: dict[str, Callable[[Picture, Rng], bytes]] = {
    "jpeg": lambda image, rng: encode(image, "JPEG", quality=int(rng.integers(30, 80))),
    "resized": resized,
    "cropped": cropped,
    "brightness": brightness,
    "mirrored": lambda image, rng: encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def plant(root: Path, name: str, share: float, seed: int) -> pd.DataFrame:
    """Write images and copies; the truth: path, family, kind."""
    rng = np.random.default_rng([seed, 5, round(100 * share)])
    folder, truth = root / "images", []
    folder.mkdir()

    def write(data: bytes, family: int, kind: str) -> None:
        ext = "jpg" if data.startswith(b"\xff\xd8") else "png"
        file = folder / f"{rng.integers(2**62):016x}.{ext}"
        file.write_bytes(data)
        truth.append({"path": f"images/{file.name}", "family": family, "kind": kind})

    for family, picture in enumerate(originals(name, rng)):
        image = picture.convert("RGB")
        data = encode(image, "JPEG", quality=92) if rng.random() < 0.5 else encode(image)
        write(data, family, "original")
        if rng.random() < share:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            for kind in rng.choice(KINDS, rng.integers(1, 4), replace=False):
                write(EDITS[kind](image, rng) if kind in EDITS else data, family, str(kind))
    return pd.DataFrame(truth)


def prepare(root: Path) -> Paths:
    """The stages before curation; of validation, that all is well."""
    cfg, paths = Config.model_validate({"data": {"sources": ["images"]}}), Paths(root)
    ingest.run(cfg, paths)
    paths.validation.mkdir(parents=True)
    write_json(
        paths.validation / "report.json", {"success": True, "expectations": [], "issues": {}}
    )
    write_json(paths.validation / "lineage.json", {})
    frame = pd.read_parquet(paths.manifest / "manifest.parquet")
    frame[:0].to_parquet(paths.validation / "quarantine.parquet", index=False)
    seed_embed.run(cfg, paths)
    return paths


def curated(paths: Paths, truth: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """The stage's verdicts beside the truth."""
    section = {"sources": ["images"]}
    curate.run(Config.model_validate({"data": section, "curate": settings}), paths)
    frame = pd.read_parquet(paths.curated / "curated.parquet")
    return frame.merge(truth, on="path", validate="1:1")


def found(frame: pd.DataFrame) -> dict[str, Any]:
    """Copies in their original's group by kind, and right drops."""
    home = frame[frame["kind"] == "original"].set_index("family")["dup_group"]
    copies = frame[frame["kind"] != "original"]
    hit = (copies["dup_group"] >= 0) & (copies["dup_group"] == copies["family"].map(home))
    lost = frame[~frame["keep"]]
    family = frame.drop_duplicates("sha256").set_index("sha256")["family"]
    right = lost["dup_of"].map(family) == lost["family"]
    by_kind = hit.groupby(copies["kind"]).agg(["sum", "count"])
    return {
        "copies": len(copies),
        "found": int(hit.sum()),
        "dropped": len(lost),
        "right": int(right.sum()),
        "kinds": {str(k): [int(a), int(b)] for k, (a, b) in by_kind.iterrows()},
    }


def semantic(frame: pd.DataFrame) -> dict[str, Any]:
    """Training families with several members: members that should go, and what went."""
    train = frame[frame["split"] == "train"]
    extra = train.groupby("family")["path"].transform("size") > 1
    lost = train[~train["keep"]]
    surplus = int((train.groupby("family").size() - 1).sum())
    left = int((train[train["keep"]].groupby("family").size() - 1).sum())
    right = int(extra.loc[lost.index].sum())
    return {"copies": surplus, "found": surplus - left, "dropped": len(lost), "right": right}


def leaks(frame: pd.DataFrame) -> dict[str, Any]:
    """Training images that share a family with a test image."""
    shown = set(frame.loc[frame["split"] == "test", "family"])
    train = frame[frame["split"] == "train"]
    bad, lost = train["family"].isin(shown), ~train["keep"]
    return {
        "copies": int(bad.sum()),
        "found": int((bad & lost).sum()),
        "dropped": int(lost.sum()),
        "right": int((bad & lost).sum()),
    }


CASES: dict[str, tuple[Callable[[pd.DataFrame], dict[str, Any]], dict[str, Any]]] = {
    "exact": (found, {"steps": ["exact"]}),
    "exact + near, no pixels": (found, {"steps": ["exact", "near"]} | BLIND),
    "exact + near": (found, {"steps": ["exact", "near"]}),
    "semantic, epsilon 0.05": (semantic, {"steps": ["semantic"]}),
    "semantic, epsilon 0.15": (
        semantic,
        {"steps": ["semantic"], "semantic": {"epsilon": 0.15}},
    ),
    "leak": (leaks, {"steps": ["leak"]}),
}


def run(seeds: int) -> list[dict[str, Any]]:
    """All sets, shares and seeds."""
    rows = []
    for name in ORIGINALS:
        for share in SHARES:
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as folder:
                    truth = plant(Path(folder), name, share, seed)
                    paths = prepare(Path(folder))
                    for case, (score, settings) in CASES.items():
                        scores = score(curated(paths, truth, **settings))
                        about = {"set": name, "share": share, "seed": seed, "case": case}
                        rows.append(about | {"images": len(truth)} | scores)
    return rows


def total(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds: recall and precision with the range of the seeds."""
    table = pd.DataFrame(rows)
    table["recall"] = table["found"] / table["copies"].clip(lower=1)
    table["precision"] = table["right"] / table["dropped"].where(table["dropped"] > 0)
    summary = []
    for keys, part in table.groupby(["set", "share", "case"], sort=False):
        whole = part[["images", "copies", "found", "dropped", "right"]].sum()
        summary.append(
            dict(zip(("set", "share", "case"), keys, strict=True))
            | {k: int(v) for k, v in whole.items()}
            | {"recall": float(whole["found"] / max(1, whole["copies"]))}
            | {"recall_least": float(part["recall"].min())}
            | {"precision": float(whole["right"] / max(1, whole["dropped"]))}
            | {"precision_least": float(part["precision"].fillna(1).min())}
        )
    return summary


def markdown(summary: list[dict[str, Any]]) -> str:
    """The table; in brackets the worst seed."""
    lines = [
        "| set | with copies | steps | copies | recall | dropped | precision |",
        "|" + "-|" * 7,
    ]
    lines += [
        f"| {s['set']} | {s['share']:.0%} | {s['case']} | {s['copies']} "
        f"| {s['recall']:.3f} ({s['recall_least']:.3f}) | {s['dropped']} "
        f"| {s['precision']:.3f} ({s['precision_least']:.3f}) |"
        for s in summary
    ]
    return "\n".join(lines)


def by_kind(rows: list[dict[str, Any]], case: str = "exact + near") -> str:
    """Recall of each kind of copy, by set."""
    names = list(dict.fromkeys(r["set"] for r in rows))
    lines = ["| copy | " + " | ".join(names) + " |", "|" + "-|" * (1 + len(names))]
    for kind in KINDS:
        cells = []
        for name in names:
            mine = [
                r["kinds"].get(kind, [0, 0]) for r in rows if (r["set"], r["case"]) == (name, case)
            ]
            hit, of = (sum(column) for column in zip(*mine, strict=True))
            cells.append(f"{hit / max(1, of):.3f} of {of}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = run(args.seeds)
    summary = total(rows)
    about = {"seeds": args.seeds, "originals": ORIGINALS, "shares": SHARES, "kinds": KINDS}
    record = {"name": "duplicates", "machine": machine(), "about": about}
    write_json(RESULTS / "duplicates.json", record | {"summary": summary, "rows": rows})
    print(f"{markdown(summary)}\n\n{by_kind(rows)}")


if __name__ == "__main__":
    main()
