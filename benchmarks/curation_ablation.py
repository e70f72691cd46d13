"""Does curation help? raw, deduplicated, balanced and + synthetic, pretrained at equal compute.

    python -m benchmarks.curation_ablation [--seeds 3] [--teraflops 1.0] [--work DIR]

Each seed draws a world anew: emoji of three vendors in a pose, 40 classes whose training images
fall off from many to few, and planted copies of popular pictures (equal bytes, and re-encodings),
most of them in the largest quarter of the classes. Every arm runs the stages of the chain on it;
SimCLR then trains for the same number of floating-point operations on what the arm kept.

All arms are measured on the same images: probes are fitted on the real training images without
copies (no synthetic one) and tested on glyph groups that no arm trained on. So only pretraining
differs. A call that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import _common
from ssl_core import embed, models
from ssl_core.artifacts import read_json, write_bytes, write_json
from ssl_core.config import Bench, Config, Evaluate, Paths, load
from ssl_core.curation._union import is_test
from ssl_core.evaluate import knn, linear
from ssl_core.evaluate._common import tail
from ssl_core.progress import Reporter
from ssl_core.shards import synthetic
from ssl_core.stages import (
    _trained,
    bench_methods,
    curate,
    ingest,
    seed_embed,
    seeds,
    shard,
    validate,
)
from ssl_core.stages._bench_summary import half_width
from ssl_core.synth import flow

ROOT = Path(__file__).parent.parent
RESULT = _common.RESULTS / "curation_ablation.json"
PICTURE = ROOT / "docs/curation-ablation.png"
CLASSES, LARGEST, SMALLEST, TESTED = 40, 90, 4, 12  # images of a class
COPIED, TIMES = 0.15, (2, 6)  # share of images with copies, and how many
TEST = 0.3
SLICES = Evaluate(many=40, few=12)
STEPS = ("exact", "near")
GENERATORS = {
    "synthesise.generators": ["composite", "flow"],
    "synthesise.target": 20,
    "synthesise.side": 32,
    "synthesise.options": {"flow": {"width": 32, "steps": 1000, "batch_size": 32}},
}
ARMS: dict[str, dict[str, Any]] = {
    "raw": {"curate.steps": []},
    "dedup": {"curate.steps": list(STEPS)},
    "balanced": {"curate.steps": [*STEPS, "balance"], "curate.keep": 0.7},
    "balanced + synthetic": {"curate.steps": [*STEPS, "balance"], "curate.keep": 0.7} | GENERATORS,
    "hierarchical": {"curate.steps": [*STEPS, "hierarchical"], "curate.keep": 0.7},
}
MEASURES = ("linear", "knn")
PARTS = ("all", "many", "medium", "few")
Row = dict[str, Any]


# ---- the world ---------------------------------------------------------------------------------


def unpacker() -> Any:
    """data/emoji/unpack.py as a module."""
    spec = importlib.util.spec_from_file_location("unpack", ROOT / "data/emoji/unpack.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["unpack"] = found  # its dataclasses look themselves up
    spec.loader.exec_module(found)
    return found


def pictures(rng: np.random.Generator) -> list[Row]:
    """Glyphs of the chosen classes: train groups fall off from class to class, test ones do not."""
    unpack = unpacker()
    table = pd.read_csv(unpack.HERE / "labels.csv", dtype={"code": str, "group": str})
    table = table[table["tone"] == 0]
    long = table.melt(["code", "label", "group"], list(unpack.VENDORS), "vendor", "there")
    long = long[long["there"] == 1].assign(test=lambda t: [is_test(g, TEST) for g in t["group"]])
    trained, tested = (long[long["test"] == side]["label"].value_counts() for side in (False, True))
    fit = [c for c in trained.index if tested.get(c, 0) >= 6]  # the largest classes come first
    names = np.array(fit[:CLASSES])[rng.permutation(min(CLASSES, len(fit)))]
    # Large classes can give many images; which of those that can are the head is drawn.
    names = sorted(names, key=lambda c: -min(trained[c], LARGEST))
    art = {v: unpack.read_tar(v) for v in unpack.VENDORS}
    rows: list[Row] = []
    for place, name in enumerate(names):
        share = place / (len(names) - 1)
        size = round(LARGEST * (SMALLEST / LARGEST) ** share)
        for side, count in ((False, size), (True, TESTED)):
            mine = long[(long["label"] == name) & (long["test"] == side)]
            drawn = mine.iloc[rng.permutation(len(mine))[:count]]
            for r in drawn.itertuples():
                image, _ = unpack.pose(art[str(r.vendor)][str(r.code)], rng)
                about = {"code": r.code, "vendor": r.vendor, "label": name, "group": r.group}
                rows.append(about | {"image": image, "test": side, "place": place})
    return rows


def encoded(image: Image.Image, quality: int = 0) -> bytes:
    out = io.BytesIO()
    if quality:
        image.save(out, "JPEG", quality=quality)
    else:
        image.save(out, "PNG")
    return out.getvalue()


def write_world(root: Path, seed: int) -> pd.DataFrame:
    """data/raw with metadata.csv; returns the truth: path, label, group, test, copy."""
    rng, truth = np.random.default_rng(seed), []
    folder = root / "data/raw"
    folder.mkdir(parents=True)

    def put(row: Row, name: str, data: bytes, copy: bool) -> None:
        (folder / name).write_bytes(data)
        about = {k: row[k] for k in ("label", "group", "test")}
        truth.append({"path": name, **about, "source": row["vendor"], "copy": copy})

    for row in pictures(rng):
        base = f"{row['vendor']}-{row['code']}"
        put(row, f"{base}.png", encoded(row["image"]), False)
        head = row["place"] < CLASSES / 4
        if row["test"] or rng.random() >= COPIED * (1.6 if head else 0.4):
            continue
        for number in range(int(rng.integers(TIMES[0], TIMES[1] + 1))):
            exact = rng.random() < 0.3
            side = int(rng.integers(52, 65))
            image = row["image"].resize((side, side), Image.Resampling.BICUBIC)
            data = encoded(row["image"]) if exact else encoded(image, int(rng.integers(50, 90)))
            put(row, f"{base}-{number}.{'png' if exact else 'jpg'}", data, True)
    frame = pd.DataFrame(truth)
    columns = ["path", "label", "group", "source"]
    frame[columns].to_csv(folder / "metadata.csv", index=False)
    return frame


# ---- the arms ----------------------------------------------------------------------------------


def settings(changes: dict[str, Any], seed: int) -> Config:
    base = {"data.sources": ["data/raw"], "data.test_fraction": TEST, "shard.max_side": 32}
    return load(Path("none"), base | {"seed": seed} | changes)


def common(root: Path, seed: int, truth: pd.DataFrame) -> None:
    """What all arms share, and the shards that all are measured on."""
    cfg, paths = settings({"curate.steps": ["exact"]}, seed), Paths(root)
    for stage in (ingest, validate, seed_embed, curate):
        stage.run(cfg, paths)
    frame = pd.read_parquet(paths.curated / "curated.parquet")
    rows = told(frame, truth)
    frame["keep"], frame["split"] = ~rows["copy"], np.where(rows["test"], "test", "train")
    frame.to_parquet(paths.curated / "curated.parquet", index=False)
    shard.run(cfg, paths)
    paths.shards.rename(root / "measured")


def told(frame: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The truth about each row; synthetic rows are neither copies nor for the test."""
    names = frame["path"].str.removeprefix("data/raw/")
    known = truth.set_index("path").reindex(names).reset_index(drop=True)
    plain = {"copy": False, "test": False}
    return known.fillna(plain).astype(dict.fromkeys(plain, bool))


def prepare(root: Path, arm: str, seed: int, truth: pd.DataFrame) -> tuple[Path, Row]:
    """The arm's shards, and what it kept."""
    cfg, paths = settings(ARMS[arm], seed), Paths(root)
    made = curate.run(cfg, paths)
    frame = pd.read_parquet(paths.curated / "curated.parquet")
    rows = told(frame, truth)
    kept = (frame["keep"] & (frame["split"] == "train") & ~rows["test"]).to_numpy()
    frame["keep"] = kept | ((frame["split"] == "test") & frame["keep"] & rows["test"])
    frame.to_parquet(paths.curated / "curated.parquet", index=False)
    shard.run(cfg, paths)
    target = root / "arms" / arm.replace(" ", "")
    target.parent.mkdir(exist_ok=True)
    paths.shards.rename(target)
    if "synthesise.generators" in ARMS[arm]:
        show(paths, frame, root / f"{target.name}.png")
    size = frame.loc[kept, "label"].value_counts()
    about = {
        "images": int(kept.sum()),
        "copies": int(rows.loc[kept, "copy"].sum()),
        "synthetic": int(synthetic(frame.loc[kept, "source"]).sum()),
        "largest_over_median": float(size.max() / size.median()),
    }
    return target, about | ({"candidates": made["synthetic"]} if "synthetic" in made else {})


def train(cfg: Config, folder: Path, work: Path, report: Reporter) -> tuple[Any, int]:
    own = bench_methods.training(cfg, "simclr", cfg.seed)
    encoder = _trained.fit(own, folder, work, report)
    return encoder, _trained.about(work)["steps"]


def measure(encoder: Any, images: seeds.Images) -> Row:
    """Accuracy on the test images by part; the mean over classes where parts mix them."""
    colour = models.normalisation(images.reader.channels)
    first, second = images.sets(embed.compute(encoder, images.reader, *colour))
    said = {
        "knn": knn.predict(first, second.features),
        "linear": linear.named(linear.fit(first), first, second.features),
    }
    masks = {k.removeprefix("tail:"): m for k, m in tail(first, second, SLICES).items()}
    masks["all"] = np.ones(len(second), bool)
    found = {}
    for name, labels in said.items():
        right = pd.Series(labels == second.labels).groupby(second.labels).mean()
        for part, mask in masks.items():
            found[f"{name} {part}"] = float(right[np.unique(second.labels[mask])].mean())
    return found


def flow_flops(steps: int, batch: int, width: int, classes: int) -> float:
    """Floating-point operations of the flow's training."""
    from ssl_core.synth._unet import UNet

    net, counter = UNet(classes, width, 2), FlopCounterMode(display=False)
    x, generator = torch.zeros(batch, 3, 32, 32), torch.Generator()
    with counter:
        label = torch.zeros(batch, dtype=torch.long)
        flow.loss(lambda a, t: net(a, t, label), x, generator).backward()
    return float(counter.get_total_flops()) * steps


def one_seed(work: Path, seed: int, bench: Bench, report: Reporter) -> list[Row]:
    """All arms of one world; finished ones are read."""
    root, rows = work / f"seed-{seed}", []
    if not (root / "truth.parquet").exists():
        truth = write_world(root, seed)
        common(root, seed, truth)
        truth.to_parquet(root / "truth.parquet")
    truth = pd.read_parquet(root / "truth.parquet")
    images = seeds.images_of(root / "measured", bench.image_size)
    for arm in ("random init", *ARMS):
        file = root / f"{arm.replace(' ', '')}.json"
        if not file.exists():
            row: Row = {"arm": arm, "seed": seed}
            if arm == "random init":
                torch.manual_seed(seed)
                encoder: Any = models.create(bench.backbone, bench.backbone_args)
            else:
                folder, about = prepare(root, arm, seed, truth)
                cfg = settings(ARMS[arm], seed).model_copy(update={"bench": bench})
                encoder, steps = train(cfg, folder, root / "work" / folder.name, report)
                row |= about | {"steps": steps}
            write_json(file, row | measure(encoder, images))
        rows.append(read_json(file))
        said = ", ".join(f"{k} {rows[-1][k]:.3f}" for k in ("linear all", "linear few", "knn all"))
        report.log(f"seed {seed} {arm}: {said}")
    return rows


# ---- the result --------------------------------------------------------------------------------


def show(paths: Paths, frame: pd.DataFrame, file: Path) -> None:
    """Accepted images below real ones of their classes."""
    from ssl_core import images

    made = frame[synthetic(frame["source"])]
    strips = []
    for label in sorted(made["label"].unique())[:12]:
        real = frame[(frame["label"] == label) & ~synthetic(frame["source"]) & frame["keep"]]
        column = [*real["path"][:2]]
        for generator in ("composite", "flow"):
            mine = made[(made["label"] == label) & made["source"].str.endswith(generator)]
            column += [*mine["path"][:3], *[""] * (3 - min(3, len(mine)))]
        cells = []
        for ref in column:
            cell = np.full((64, 64, 3), 255, np.uint8)
            if ref:
                data = images.decode(images.read_bytes(ref, paths.root), 64)
                cell[: data.shape[0], : data.shape[1]] = data
                if len(data) < 64:
                    cell = np.asarray(Image.fromarray(data).resize((64, 64)))
            cells.append(np.pad(cell, ((1, 1), (1, 1), (0, 0)), constant_values=255))
        strips.append(np.concatenate(cells))
    if strips:
        Image.fromarray(np.concatenate(strips, axis=1)).save(file)


def summary(rows: list[Row]) -> list[Row]:
    """Mean and 95 % interval (Student, over worlds) of each arm, and of its gain over raw."""
    found = []
    base = {r["seed"]: r for r in rows if r["arm"] == "raw"}
    for arm in dict.fromkeys(r["arm"] for r in rows):
        mine = [r for r in rows if r["arm"] == arm]
        line: Row = {"arm": arm, "seeds": len(mine)}
        for key in (f"{m} {p}" for m in MEASURES for p in PARTS):
            values = [r[key] for r in mine]
            gains = [r[key] - base[r["seed"]][key] for r in mine]
            line[key] = {"mean": float(np.mean(values)), "half": half_width(values)}
            line[key] |= {"gain": float(np.mean(gains)), "gain_half": half_width(gains)}
        for key in ("images", "copies", "synthetic", "largest_over_median", "steps"):
            if key in mine[0]:
                line[key] = float(np.mean([r[key] for r in mine]))
        found.append(line)
    return found


def cell(value: Row) -> str:
    half = "" if value["half"] is None else f" ± {100 * value['half']:.1f}"
    return f"{100 * value['mean']:.1f}{half}"


def gain(value: Row) -> str:
    half = "" if value["gain_half"] is None else f" ± {100 * value['gain_half']:.1f}"
    return f"{100 * value['gain']:+.1f}{half}"


def markdown(table: list[Row], about: Row) -> str:
    """Two tables: accuracy, and the paired gain over raw."""
    head = " | ".join(f"{m} {p}" for m in MEASURES for p in PARTS)
    lines = [
        f"# Curation: {about['seeds']} worlds, {about['teraflops']} TFLOP each\n",
        "Mean accuracy over classes in percent, with 95 % intervals over worlds (Student). ",
        "Probes see the same real images in all arms; only what SimCLR saw differs.\n",
        f"| arm | images | copies | synthetic | {head} |",
        "|" + "-|" * (4 + len(MEASURES) * len(PARTS)),
    ]
    for r in table:
        sizes = (f"{r[k]:.0f}" if k in r else "" for k in ("images", "copies", "synthetic"))
        cells = (cell(r[f"{m} {p}"]) for m in MEASURES for p in PARTS)
        lines.append(f"| {r['arm']} | {' | '.join(sizes)} | {' | '.join(cells)} |")
    lines += ["\nGain over raw, paired by world:\n", f"| arm | {head} |"]
    lines.append("|" + "-|" * (1 + len(MEASURES) * len(PARTS)))
    for r in table:
        if r["arm"] not in ("raw", "random init"):
            cells = (gain(r[f"{m} {p}"]) for m in MEASURES for p in PARTS)
            lines.append(f"| {r['arm']} | {' | '.join(cells)} |")
    lines.append("\n" + "\n".join(f"- {k}: {v}" for k, v in about.items()))
    return "\n".join(lines) + "\n"


def draw(table: list[Row], sample: Path) -> None:
    """Gains over raw with intervals, by part; below, what was made."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = [r for r in table if r["arm"] not in ("raw", "random init")]
    figure = plt.figure(figsize=(9, 7.5))
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.15))
    for column, name in enumerate(MEASURES):
        axis = figure.add_subplot(grid[0, column])
        for i, r in enumerate(arms):
            values = [100 * r[f"{name} {p}"]["gain"] for p in PARTS]
            halves = [100 * (r[f"{name} {p}"]["gain_half"] or 0) for p in PARTS]
            place = np.arange(len(PARTS)) + (i - (len(arms) - 1) / 2) * 0.8 / len(arms)
            axis.errorbar(place, values, halves, fmt="o", capsize=3, label=r["arm"])
        axis.axhline(0, color="#888", lw=1)
        axis.set_xticks(range(len(PARTS)), PARTS)
        axis.set_title(f"{name}: gain over raw, points", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7)
    if sample.exists():
        axis = figure.add_subplot(grid[1, :])
        axis.imshow(np.asarray(Image.open(sample)))
        axis.set_title("rows: 2 real, 3 composite, 3 flow; columns: rare classes", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teraflops", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/curation-ablation")
    given = parser.parse_args()
    bench = Bench(teraflops=given.teraflops, fine_tune_steps=0)
    with Reporter("ablation") as report:
        rows = [r for s in range(given.seeds) for r in one_seed(given.work, s, bench, report)]
    table, options = summary(rows), GENERATORS["synthesise.options"]["flow"]
    spent = flow_flops(options["steps"], options["batch_size"], options["width"], CLASSES)
    candidates: Counter[str] = Counter()
    for r in rows:
        candidates.update(r.get("candidates", {}))
    about = {
        "seeds": given.seeds,
        "teraflops": given.teraflops,
        "steps of SimCLR": table[1]["steps"],
        "teraflops of the flow's training, beside that": round(spent / 1e12, 1),
        "candidates, all worlds and arms": dict(sorted(candidates.items())),
        "machine": _common.machine(),
    }
    write_json(RESULT, {"about": about, "rows": rows, "table": table})
    write_bytes(RESULT.with_suffix(".md"), markdown(table, about).encode())
    draw(table, given.work / "seed-0/balanced+synthetic.png")
    print(markdown(table, about))


if __name__ == "__main__":
    main()
