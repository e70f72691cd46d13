"""What 100 k to 100 M images need, computed from measurements: tables for docs/guides/scaling.md.

``python -m benchmarks.sizing [--images 5000000 --gpus 8 --rate 900 --epochs 50] [--write]``

Every line names the file in ``results/`` that it comes from; a line whose file is missing is left
out, and that is said. ``~`` stands before what lies beyond the largest size that was measured.
``--rate`` is images per second of one GPU: training prints it. More than one was never measured.
``--write`` puts the tables into the guide; tests/test_sizing.py compares.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._common import RESULTS
from ssl_core.artifacts import read_json, write_bytes
from ssl_core.report import _tables

GUIDE = Path(__file__).parent.parent / "docs/guides/scaling.md"
BEGIN, END = "<!-- sizing -->\n", "<!-- /sizing -->\n"
NAMES = ("footprint", "memory", "curation", "data_path", "scaling", "s3", "step", "gpu")
IMAGES = (100_000, 1_000_000, 10_000_000, 100_000_000)
CLUSTERS = ((1, 1000.0), (8, 1000.0), (8, 3000.0), (32, 3000.0))  # GPUs, images per second of each
EPOCHS = 100.0
TRAININGS = (  # of benchmarks.gpu: what hours are computed for
    "simclr ViT-S/16",
    "simclr ResNet-50",
    "dino ViT-S/16",
    "mae ViT-B/16",
    "dinov2 ViT-B/16",
    "dinov2 ViT-B/16, blocks computed again",
)
SHARD_BYTES = 32 * 2**20  # shard.max_bytes
DIMENSIONS, WIDE = 64, 1280  # of benchmarks.curation, and of the default seed encoder
EMBEDDING = 384 * 4  # bytes: ViT-S in float32
MIB, HOUR = 2**20, 3600

Found = dict[str, dict[str, Any]]
Amount = Callable[[float], float]  # of a number of images


@dataclass(frozen=True)
class Line:
    """One line: an amount by number of images, measured up to ``limit`` of them."""

    name: str
    amount: Amount
    form: Callable[[float], str]
    source: str
    limit: float

    def cells(self, images: Sequence[int]) -> list[str]:
        """``~`` marks what is extrapolated."""
        return [("~" if n > self.limit else "") + self.form(self.amount(n)) for n in images]


def linear(name: str, each: float, form: Callable[[float], str], source: str, limit: float) -> Line:
    """A line of so much for each image."""
    return Line(name, lambda n: each * n, form, source, limit)


def results(folder: Path = RESULTS) -> Found:
    """The result files that are there."""
    files = {name: folder / f"{name}.json" for name in NAMES}
    return {name: read_json(file) for name, file in files.items() if file.exists()}


# ---- how numbers are written -------------------------------------------------------------------


def two(value: float) -> str:
    """Two significant digits."""
    if value <= 0:
        return "0"
    places = 1 - math.floor(math.log10(value))
    value = round(value, places)
    places = 1 - math.floor(math.log10(value))  # 0.996 has become 1.0
    return f"{value:,.{max(0, places)}f}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if round(count) < 1000:
            return f"{two(count)} {unit}"
    return f"{two(count / 1000)} TB"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(_tables.markdown(head, lines))


# ---- by the number of images -------------------------------------------------------------------


def stored(found: Found) -> Iterator[Line]:
    """What lies on disk."""
    if "footprint" not in found:
        return
    per, limit = found["footprint"]["bytes_per_image"], found["footprint"]["about"]["images"]

    tables = per["manifest"] + per["curated"] + per["shard index"]
    for name, each, form in (
        ("shards, longest side 256 px", per["shards"], size),
        ("shard files at 32 MiB", per["shards"] / SHARD_BYTES, two),
        ("manifest, curated and shard index", tables, size),
        ("seed features, 1,280 numbers", per["seed features"], size),
    ):
        yield linear(name, each, form, "footprint.json", limit)
    yield linear("own embeddings, 384 numbers", EMBEDDING, size, "4 bytes each", 0)


def held(found: Found) -> Iterator[Line]:
    """What one process has in memory."""
    if "footprint" in found:
        per, limit = found["footprint"]["bytes_per_image"], found["footprint"]["about"]["images"]
        times = found["footprint"]["copies"]
        most = times * per["seed features"]
        source = f"footprint.json, {times:.1f} copies"
        yield linear("memory: seed_embed, 1,280 numbers", most, size, source, limit)
        frame = per["curated in memory"]
        yield linear("memory: curated table", frame, size, "footprint.json", limit)
    if "memory" in found:
        about, last = found["memory"]["about"], found["memory"]["points"][-1]
        each = (last["own"] - about["before"]["own"]) * MIB / about["samples"]
        name = "memory: reader, each rank"
        yield linear(name, each, size, "memory.json", about["samples"])


def worked(found: Found) -> Iterator[Line]:
    """Core-hours of the stages before training."""
    if "footprint" not in found:
        return
    per, limit = found["footprint"]["cpu_seconds_per_image"], found["footprint"]["about"]["images"]
    for stage in ("ingest", "validate", "seed_embed", "shard"):
        yield linear(f"core-hours: {stage}", per[stage] / HOUR, two, "footprint.json", limit)


def curated(found: Found) -> Iterator[Line]:
    """All steps of curation: core-hours and memory, at 64 numbers and at 1,280."""
    if "curation" not in found:
        return
    rows = [r for r in found["curation"]["rows"] if r["case"] == "all"]
    rows.sort(key=lambda r: r["images"])
    before, last = rows[-2:]
    known = {r["images"]: r["cpu_seconds"] for r in rows}
    tens = math.log10(last["images"] / before["images"])
    # What lies beyond grows as the last step did; less than ×10 is the noise of a shared machine.
    tenfold = max(10.0, (last["cpu_seconds"] / before["cpu_seconds"]) ** (1 / tens))

    def hours(n: float) -> float:
        beyond = last["cpu_seconds"] * tenfold ** math.log10(n / last["images"])
        return float(known.get(int(n), beyond)) / HOUR

    each = (last["peak_mib"] - before["peak_mib"]) * MIB / (last["images"] - before["images"])
    limit, source = last["images"], "curation.json"
    name = f"curation, {DIMENSIONS} numbers"
    yield Line(f"core-hours: {name}", hours, two, f"{source}, ×{tenfold:.1f} per ×10", limit)
    yield linear(f"memory: {name}", each, size, source, limit)
    wide = each + 4 * (WIDE - DIMENSIONS)
    name = "memory: curation, 1,280 numbers"
    yield linear(name, wide, size, f"{source}, one copy more wide", 0)
    if "footprint" in found:
        cpu = {r["dimensions"]: r["cpu_seconds"] for r in found["footprint"]["width"]}
        times = cpu[WIDE] / cpu[DIMENSIONS]
        source = f"{source}; footprint.json, ×{times:.1f}"
        name = "core-hours: curation, 1,280 numbers"
        yield Line(name, lambda n: times * hours(n), two, source, 0)


def by_images(found: Found, images: Sequence[int] = IMAGES) -> str:
    """Disk, memory and core-hours."""
    lines = [*stored(found), *held(found), *worked(found), *curated(found)]
    head = ["images", *(f"{n:,}" for n in images), "from"]
    return table(head, [[line.name, *line.cells(images), line.source] for line in lines])


# ---- by images per second ----------------------------------------------------------------------


def row_of(result: dict[str, Any], group: str, case: str, key: str = "rows") -> dict[str, Any]:
    """The one row of a case."""
    (found,) = [r for r in result[key] if r["group"] == group and r["case"] == case]
    return dict(found)


def rates(found: Found) -> Iterator[tuple[str, float, str]]:
    """What a core reads and augments: name, images per second, file."""
    if "data_path" in found:
        for recipe in ("SimCLR 2×224", "DINO 2×224+6×96"):
            row = row_of(found["data_path"], f"{recipe}, JPEG 256 px", "headwater")
            yield f"{recipe}, views by workers", row["median"], "data_path.json"
    if "footprint" in found:
        for case, name in (
            ("MAE 1×224", "MAE 1×224, views by workers"),
            ("image alone", "any method, views on the GPU"),
        ):
            row = row_of(found["footprint"], "JPEG 256 px", case, "views")
            yield name, row["median"], "footprint.json"


def share(found: Found) -> tuple[float, int]:
    """What a core brings among the most that were measured together, and how many these were."""
    mine = [r for r in found["scaling"]["rows"] if r["group"] == "headwater"]
    ratio = {int(re.findall(r"\d+", r["case"])[0]): float(r["ratio"]) for r in mine}
    most = max(ratio)
    return ratio[most] / most, most


def cores(total: float, rate: float, part: float, most: int) -> str:
    """How many feed so many images per second."""
    count = max(1, math.ceil(total / (rate * part) - 1e-9))
    return f"{'~' if count > most else ''}{count:,}"


def by_rate(found: Found, clusters: Sequence[tuple[int, float]] = CLUSTERS) -> str:
    """Cores and bytes per second that feed a number of GPUs."""
    if "scaling" not in found:
        return ""
    part, most = share(found)
    totals = [gpus * rate for gpus, rate in clusters]
    lines = [
        [name, two(rate), *(cores(t, rate, part, most) for t in totals), source]
        for name, rate, source in rates(found)
    ]
    if "footprint" in found:
        each = found["footprint"]["bytes_per_image"]["shards"]
        cells = [f"~{size(each * t)}/s" for t in totals]
        lines.append(["to be read, 256 px", "", *cells, "footprint.json"])
    head = ["cores that feed", "img/s of a core"]
    head += [f"{gpus} GPU{'s' * (gpus > 1)} at {rate:,.0f} img/s" for gpus, rate in clusters]
    return table([*head, "from"], lines)


def card(row: dict[str, Any]) -> str:
    """The GPU of a training, in a word."""
    return str(row["machine"]["gpu"]).removeprefix("NVIDIA ").split()[0]


def on_gpu(found: Found) -> str:
    """Whole trainings as they were measured."""
    if "gpu" not in found:
        return ""
    lines = []
    for r in sorted(found["gpu"]["rows"], key=lambda r: str(r["case"])):
        rate, memory = f"{r['images_per_second']:,.0f}", f"{r['peak_bytes'] / 2**30:.1f}"
        shares = [f"{r[key]:.0%}" for key in ("mfu", "share/wait", "share/checkpoint")]
        first = two(r["first_step_seconds"])
        cells = [r["case"], card(r), r["batch"], r["steps"], rate, memory, *shares, first]
        lines.append([str(cell) for cell in cells])
    head = ["training", "GPU", "batch", "steps", "img/s", "GiB", "of peak", "waits", "checkpoints"]
    return table([*head, "first step, s"], lines)


def by_speed(
    found: Found,
    images: Sequence[int] = IMAGES,
    clusters: Sequence[tuple[int, float]] = CLUSTERS,
    epochs: float = EPOCHS,
) -> str:
    """Hours of pretraining."""
    speeds = [(f"{g} × {r:,.0f} img/s", g * r, "", "your measurement") for g, r in clusters]
    trained = {r["case"]: r for r in found["gpu"]["rows"]} if "gpu" in found else {}
    for case in TRAININGS:
        if row := trained.get(case):
            speed = row["images_per_second"]
            name = f"{case}, one {card(row)}: {speed:,.0f} img/s"
            speeds.append((name, speed, "~", "gpu.json"))
    if "step" in found:
        published = found["step"]["about"]["published"]
        speed = float(published.rpartition(": ")[2].split()[0])
        speeds.append((published, speed, "~", "published, not ours: step.json"))
    lines = [
        [name, *(mark + two(n * epochs / speed / HOUR) for n in images), source]
        for name, speed, mark, source in speeds
    ]
    head = [f"hours of {epochs:g} epochs", *(f"{n:,} images" for n in images), "from"]
    return table(head, lines)


def machines(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that a file comes from: one, but for trainings that each say theirs."""
    if "machine" in result:
        return [result["machine"]]
    found = {tuple(sorted(r["machine"].items())): r["machine"] for r in result["rows"]}
    return list(found.values())


def notes(found: Found) -> str:
    """What holds of the tables, and which processors the files come from."""
    said = []
    if "scaling" in found:
        part, most = share(found)
        text = f"Cores are taken at {part:.0%} of one alone, as among {most} (`scaling.json`)"
        said.append(f"{text}; more were never measured.")
    if "s3" in found:
        row = row_of(found["s3"], "to 224 px, batches of 64", "S3, first time")
        rest = "client and server on the same two cores (`s3.json`)"
        said.append(f"From S3 for the first time: {row['ratio']:.2f} of the disk's rate, {rest}.")
    if {"footprint", "data_path"} <= set(found):
        here = row_of(found["footprint"], "JPEG 256 px", "SimCLR 2×224", "views")["median"]
        there = row_of(found["data_path"], "SimCLR 2×224, JPEG 256 px", "headwater")["median"]
        text = f"SimCLR's views in the run of `footprint.json`: {here:.0f} img/s of a core"
        said.append(f"{text}, which is {here / there:.0%} of `data_path.json`.")
    where = dict[str, list[str]]()
    for name, result in found.items():
        for about in machines(result):
            gpu = f", {about['gpu']}" if "gpu" in about else ""
            where.setdefault(f"{about['cpu']}, {about['cores']} cores{gpu}", []).append(name)
    said += [f"{cpu}: {', '.join(names)}." for cpu, names in where.items()]
    missing = [name for name in NAMES if name not in found]
    if missing:
        said.append(f"Not measured yet, so left out: {', '.join(missing)}.")
    return "\n".join(f"- {line}" for line in said)


def text(
    found: Found,
    images: Sequence[int] = IMAGES,
    clusters: Sequence[tuple[int, float]] = CLUSTERS,
    epochs: float = EPOCHS,
) -> str:
    """All tables."""
    parts = [by_images(found, images), by_rate(found, clusters)]
    parts += [on_gpu(found), by_speed(found, images, clusters, epochs), notes(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def placed(page: str, tables: str) -> str:
    """The page with the tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--rate", type=float, help="images per second of one GPU")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--write", action="store_true", help="into the guide, at its own sizes")
    args = parser.parse_args()
    if args.write:
        write_bytes(GUIDE, placed(GUIDE.read_text(), text(results())).encode())
        return
    own = args.gpus or args.rate
    clusters = ((args.gpus or 1, args.rate or 1000.0),) if own else CLUSTERS
    print(text(results(), args.images, clusters, args.epochs), end="")


if __name__ == "__main__":
    main()
