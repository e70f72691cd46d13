"""``headwater audit`` on real embedded images with planted faults: label errors and confounders.

    python -m benchmarks.audit [--seeds 3] [--images 1500]

Emoji art of three vendors (9 classes, images of one glyph are one group) and scikit-learn's digits.
A share of the labels is flipped to another class, drawn evenly; then the same pipeline (linear
probes cross-validated by group, confident learning) ranks the labels on three kinds of features:
the seed encoder's, raw pixels (16 x 16 x 3), and those of an untrained ResNet. Confounders: a
blue frame, or a red mark of 6 pixels in a corner, on nine in ten images of one class and on 2 % of
the others; or the name of a camera for that class; and nothing, where nothing should be named.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn import functional as F

from benchmarks import _common, _planted
from ssl_core import models
from ssl_core.artifacts import write_json
from ssl_core.audit import confounders, label_errors, properties
from ssl_core.config import Audit
from ssl_core.types import Array, Embeddings

NOISE = (0.05, 0.10)
PLANTS = ("nothing", "frame", "corner", "source")
SHARE_IN, SHARE_OUT = 0.9, 0.02
FAMILY = {  # what a plant may rightly be found as
    "nothing": (),
    "frame": ("border_colour", "border_spread", *properties.IMAGE[-4:], *properties.IMAGE[:4]),
    "corner": ("corner_bottom_right", "border_spread", "border_colour"),
    "source": ("source",),
}
Names = NDArray[np.str_]


def draw(name: str, count: int, seed: int) -> tuple[list[Image.Image], Names, Names, Names]:
    """Pictures, labels, groups and vendors of some rows of a pool."""
    pool = {"emoji": _planted.emoji, "digits": _planted.digits}[name]()
    rng = np.random.default_rng([seed, 23])
    rows = rng.permutation(len(pool.label))[:count]
    pictures = [pool.make(int(i), rng) for i in rows]
    return pictures, pool.label[rows], pool.group[rows], pool.vendor[rows]


def features(pictures: list[Image.Image], kind: str) -> Array:
    """(N, D) of one kind."""
    pixels = np.stack([np.asarray(p.convert("RGB"), np.uint8) for p in pictures])
    stack = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (N, S, S, 3) -> (N, 3, S, S)
    if kind == "pixels":
        return F.adaptive_avg_pool2d(stack.float() / 255 - 0.5, 16).flatten(1).numpy()
    if kind == "random":
        torch.manual_seed(0)
        module = models.create("resnet10t", {}).eval()
        with torch.inference_mode():
            parts = [module(models.preprocess(x, (0.5,) * 3, (0.5,) * 3)) for x in stack.split(64)]
        return np.concatenate([getattr(p, "pooled", p).numpy() for p in parts])
    blank = np.full(len(pictures), "")
    return _planted.embed(pictures, blank, blank).features


def frame(rows: Array, label: Names, group: Names) -> Embeddings:
    """Rows as the audit sees them."""
    classes, code = np.unique(label, return_inverse=True)
    keys = np.array([f"{i:064x}" for i in range(len(rows))])
    blank = np.full(len(rows), "")
    return Embeddings(rows, code.astype(np.int64), tuple(classes.tolist()), keys, group, blank)


def flipped(label: Names, share: float, seed: int) -> tuple[Names, NDArray[np.bool_]]:
    """Labels of which a share is another class, and which those are."""
    rng = np.random.default_rng([seed, 29])
    wrong = np.zeros(len(label), np.bool_)
    wrong[rng.choice(len(label), round(share * len(label)), replace=False)] = True
    classes, code = np.unique(label, return_inverse=True)
    step = rng.integers(1, len(classes), len(label))
    return np.where(wrong, classes[(code + step) % len(classes)], label), wrong


def errors(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Average precision of the ranking, precision and recall of what is called an error."""
    from sklearn.metrics import average_precision_score

    pictures, label, group, _ = draw(name, count, seed)
    rows = []
    for kind in ("seed encoder", "pixels", "random"):
        known = features(pictures, kind)
        for share in NOISE:
            noisy, wrong = flipped(label, share, seed)
            e = frame(known, noisy, group)
            found = label_errors.find(e, label_errors.out_of_sample(e, seed=seed))
            hit = found["issue"].to_numpy() & wrong
            rows.append(
                {
                    "set": name,
                    "features": kind,
                    "noise": share,
                    "seed": seed,
                    "average_precision": float(average_precision_score(wrong, -found["quality"])),
                    "precision": float(hit.sum() / max(1, found["issue"].sum())),
                    "recall": float(hit.sum() / wrong.sum()),
                    "right_suggestion": float((found["suggested"] == label)[hit].mean()),
                }
            )
    return rows


def corner(picture: Image.Image) -> Image.Image:
    """A red mark of 6 pixels."""
    marked = picture.convert("RGB")
    side = marked.width
    ImageDraw.Draw(marked).rectangle((side - 6, side - 6, side, side), fill=(220, 40, 40))
    return marked


def edge(picture: Image.Image) -> Image.Image:
    """A blue frame of 4 pixels: that of data/emoji/unpack.py."""
    framed = Image.new("RGB", picture.size, (40, 90, 220))
    side = picture.width
    framed.paste(picture.convert("RGB").crop((4, 4, side - 4, side - 4)), (4, 4))
    return framed


def confounded(name: str, plant: str, count: int, seed: int) -> dict[str, Any]:
    """What is named where something, or nothing, was planted on the commonest class."""
    pictures, label, group, vendor = draw(name, count, seed)
    rng = np.random.default_rng([seed, 31])
    victim = pd.Series(label).value_counts().index[0]
    chance = np.where(label == victim, SHARE_IN, SHARE_OUT)
    has = rng.random(len(label)) < chance
    if plant in ("frame", "corner"):
        change = edge if plant == "frame" else corner
        pictures = [change(p) if h else p for p, h in zip(pictures, has, strict=True)]
    source = np.where(vendor == "", "a", vendor)
    if plant == "source":
        source = np.where(has, "cam-x", rng.choice(np.unique(source), len(source)))
    e = frame(features(pictures, "seed encoder"), label, group)
    said = label_errors.out_of_sample(e, seed=seed).argmax(axis=1)
    ground = confounders.Ground(e.labels, said, e.groups, e.classes)
    pixels = (np.asarray(p.convert("RGB"), np.uint8) for p in pictures)
    table = properties.image_table(pixels).assign(source=pd.Series(source, dtype="str"))
    columns, cluster = properties.prepare(table), confounders.clusters(e.features, seed)
    found = confounders.rank(
        confounders.search(ground, columns, Audit(), seed),
        confounders.by_cluster(cluster, e.groups, columns, Audit(), seed),
    )
    named = found[found["named"] & (found["same_as"] == "")]
    own = named["property"].isin(FAMILY[plant])
    ours = named[own & (named["class"] == victim)]
    best = found[(found["class"] == victim) & found["property"].isin(FAMILY[plant])]
    return {
        "set": name,
        "plant": plant,
        "seed": seed,
        "class": victim,
        "found": bool(len(ours)),
        "first": ours["property"].tolist(),
        "others": named.loc[~own | (named["class"] != victim), "text"].tolist(),
        "sentence": best.sort_values("score")["text"].tolist()[-1:],
        "top": found[["property", "class", "score", "lean", "p_value", "named"]]
        .head(4)
        .to_dict("records"),
    }


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean and standard deviation over seeds."""
    measures = ["average_precision", "precision", "recall", "right_suggestion"]
    keys = ["set", "noise", "features"]
    return pd.DataFrame(rows).groupby(keys, sort=False)[measures].agg(["mean", "std"]).round(3)


def main() -> None:
    """Read the command line, measure, print and write results/audit.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    plants: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for name in _planted.SETS:
            rows += errors(name, given.images, seed)
            plants += [confounded(name, plant, given.images, seed) for plant in PLANTS]
        print(table(rows).to_string(), flush=True)
        for p in plants[-2 * len(PLANTS) :]:
            print({k: v for k, v in p.items() if k != "top"}, flush=True)
            for top in p["top"]:
                print("   ", top)
    about = {"images": given.images, "seeds": given.seeds, "audit": Audit().model_dump()}
    found = {"machine": _common.machine(), "about": about, "label_errors": rows}
    found["versions"] = _common.versions("cleanlab", "scikit-learn")
    write_json(_common.RESULTS / "audit.json", found | {"confounders": plants})


if __name__ == "__main__":
    main()
