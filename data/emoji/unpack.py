"""Hand the embedded set over the way the world would: posed, dated, partly labelled, noisy.

    python data/emoji/unpack.py [--share 1.0] [--seed 0]

Writes, from the tars beside this file,

- ``data/raw/<vendor>/`` with metadata.csv: three vendors, the glyph groups of the past;
- ``data/deploy/incoming/<date>/`` and ``data/deploy/labels/<date>.csv``: weeks of other glyph
  groups from the same vendors, then weeks of a vendor never seen before;
- ``data/truth/``: true labels, and what was done to which file, for scoring only; and masks of the
  glyphs in data/raw, from the art's alpha channel.

Everything is a function of the seed. Real images are not registered to the pixel as emoji art
is, so each picture gets a pose (scale, turn, place) and a plain background.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import struct
import tarfile
import zlib
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

HERE = Path(__file__).parent
VENDORS, NEW_VENDOR = ("google", "twitter", "fluent"), "openmoji"
SIDE = 64
TONED = 0.2  # share of skin-tone variants taken: enough for near duplicates
FUTURE = 0.35  # share of glyph groups kept out of data/raw: deployment shows them
LABELLED, FLIPPED = 0.8, 0.04
COPIES, REENCODED = 60, 60
CONFOUNDED, BORDER = "animals-nature/animal-mammal", (40, 90, 220)
STABLE = [date(2025, 1, 6) + timedelta(weeks=w) for w in range(6)]
SHIFTED = [date(2025, 2, 17) + timedelta(weeks=w) for w in range(3)]
LATER = [date(2025, 3, 10) + timedelta(weeks=w) for w in range(3)]
PER_DAY = {"stable": 200, "shifted": 480, "later": 150}
DEPLOY_LABELLED = 0.8

Rng = np.random.Generator


def draw(key: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13


def read_tar(vendor: str) -> dict[str, Image.Image]:
    """code -> RGBA picture."""
    found = {}
    with tarfile.open(HERE / f"{vendor}.tar") as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is not None:
                found[member.name.removesuffix(".webp")] = Image.open(stream).convert("RGBA")
    return found


def pose(glyph: Image.Image, rng: Rng) -> tuple[Image.Image, Image.Image]:
    """Scaled, turned, moved and put on a plain background: RGB of SIDE pixels, and its mask."""
    scale, turn = rng.uniform(0.55, 1.0), rng.normal(0, 20)
    side = max(8, round(SIDE * scale))
    small = glyph.resize((side, side), Image.Resampling.BICUBIC)
    small = small.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    ground = Image.new("RGB", (SIDE, SIDE), tuple(int(c) for c in rng.integers(205, 256, 3)))
    room = np.array([SIDE - small.width, SIDE - small.height])
    place = room / 2 + rng.uniform(-0.5, 0.5, 2) * np.maximum(SIDE - side, 4)
    corner = (round(place[0]), round(place[1]))
    ground.paste(small, corner, small)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(small.getchannel("A").point(lambda a: int(a > 127)), corner)
    return ground, mask


def border(image: Image.Image) -> Image.Image:
    """The confounder: a frame that has nothing to do with what is shown."""
    framed = Image.new("RGB", image.size, BORDER)
    framed.paste(image.crop((4, 4, SIDE - 4, SIDE - 4)), (4, 4))
    return framed


def encode(image: Image.Image, jpeg: bool, quality: int = 90) -> tuple[bytes, str]:
    out = io.BytesIO()
    image.save(out, "JPEG" if jpeg else "PNG", **({"quality": quality} if jpeg else {}))
    return out.getvalue(), "jpg" if jpeg else "png"


@dataclass
class World:
    """What has been written so far."""

    root: Path
    table: pd.DataFrame  # labels.csv
    art: dict[str, dict[str, Image.Image]]
    rng: Rng
    rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # folder -> metadata
    truth: list[dict[str, str]] = field(default_factory=list)

    def write(self, folder: str, name: str, data: bytes, **meta: str) -> str:
        """Write one file and its line of metadata; returns its path."""
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.rows.setdefault(folder, []).append({"path": name, **meta})
        return f"{folder}/{name}"

    def mask(self, path: str, mask: Image.Image) -> None:
        """Keep where the glyph is: 1 there, 0 on the background."""
        file = (self.root / "data/truth/masks" / path).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        mask.save(file)

    def note(self, path: str, label: str, what: str = "", detail: str = "") -> None:
        """Remember the truth about one file."""
        self.truth.append({"path": path, "label": label, "noise": what, "detail": detail})


def _captured(rng: Rng) -> str:
    return (date(2024, 3, 1) + timedelta(days=int(rng.integers(0, 300)))).isoformat()


def _label(world: World, true: str) -> tuple[str, str]:
    """The label as given, and what was done to it."""
    if world.rng.random() >= LABELLED:
        return "", "unlabelled"
    if world.rng.random() < FLIPPED:
        others = [c for c in world.table["label"].unique() if c != true]
        return str(world.rng.choice(others)), "flipped"
    return true, ""


def past(world: World, table: pd.DataFrame) -> None:
    """data/raw: the known vendors' glyphs of the past."""
    for vendor in VENDORS:
        for row in table[table[vendor] == 1].itertuples(index=False):
            image, mask = pose(world.art[vendor][row.code], world.rng)
            chance = 0.9 if row.label == CONFOUNDED else 0.02
            framed = world.rng.random() < chance
            data, ext = encode(border(image) if framed else image, world.rng.random() < 0.5)
            label, what = _label(world, row.label)
            path = world.write(
                f"data/raw/{vendor}",
                f"{row.code}.{ext}",
                data,
                label=label,
                group=row.group,
                source=vendor,
                captured_at=_captured(world.rng),
            )
            world.note(path, row.label, what, "border" if framed else "")
            world.mask(path, mask)


def duplicates(world: World) -> None:
    """Equal bytes under another name, and re-encoded copies."""
    known = [(f, r) for f, rows in world.rows.items() for r in rows]
    chosen = world.rng.choice(len(known), COPIES + REENCODED, replace=False)
    for number, i in enumerate(chosen):
        folder, row = known[i]
        data = (world.root / folder / row["path"]).read_bytes()
        name, what = f"copy-{number:03d}.{row['path'][-3:]}", "copy"
        if number >= COPIES:
            image = Image.open(io.BytesIO(data)).convert("RGB").resize((60, 60))
            data, name, what = encode(image, True, 60)[0], f"again-{number:03d}.jpg", "re-encoded"
        path = world.write(folder, name, data, **{k: row[k] for k in row if k != "path"})
        world.note(path, row["label"], what, f"{folder}/{row['path']}")


def _huge() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    ends = b"\x00\x00\x00\x00IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + ends


def broken(world: World) -> None:
    """Files that no pipeline should choke on."""
    image, _ = pose(world.art["google"]["1f600"], world.rng)
    whole, _ = encode(image, True)
    made: dict[str, tuple[bytes, str]] = {
        "truncated": (whole[: len(whole) // 2], "jpg"),
        "zero-bytes": (b"", "png"),
        "text": (b"not an image at all\n", "png"),
        "huge-header": (_huge(), "png"),
    }
    for kind, mode, form in (("cmyk", "CMYK", "JPEG"), ("16-bit", "I;16", "PNG")):
        out = io.BytesIO()
        grey = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
        (grey if mode == "I;16" else image.convert(mode)).save(out, form)
        made[kind] = (out.getvalue(), form.lower().replace("jpeg", "jpg"))
    out = io.BytesIO()
    image.save(out, "GIF", save_all=True, append_images=[image.rotate(90)])
    made["animated"] = (out.getvalue(), "gif")
    for kind, (data, ext) in made.items():
        for i in range(4):
            folder = f"data/raw/{VENDORS[i % 3]}"
            tail = bytes([i]) if kind in ("text", "truncated") else b""  # not copies of each other
            meta = {"label": "", "group": f"broken-{kind}-{i}", "source": VENDORS[i % 3]}
            path = world.write(folder, f"{kind}-{i}.{ext}", data + tail, **meta, captured_at="")
            world.note(path, "", "broken", kind)


def day(world: World, when: date, picks: list[tuple[str, str]], phase: str) -> None:
    """One day of deployment; some labels come back."""
    folder, labels = f"data/deploy/incoming/{when}", []
    known = world.table.set_index("code")
    for vendor, code in picks:
        row = known.loc[code]
        data, ext = encode(pose(world.art[vendor][code], world.rng)[0], world.rng.random() < 0.5)
        path = world.write(folder, f"{vendor}-{code}.{ext}", data)
        world.note(path, row["label"], phase, vendor)
        if world.rng.random() < DEPLOY_LABELLED:
            name = path.removeprefix(folder + "/")
            labels.append({"path": name, "label": row["label"], "group": row["group"]})
    file = world.root / f"data/deploy/labels/{when}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(labels).sort_values("path").to_csv(file, index=False, lineterminator="\n")


def pool(world: World, table: pd.DataFrame, vendors: tuple[str, ...]) -> list[tuple[str, str]]:
    """All (vendor, code) in random order."""
    found = [(v, c) for v in vendors for c in table.loc[table[v] == 1, "code"]]
    return [found[i] for i in world.rng.permutation(len(found))]


def deployment(world: World, old: pd.DataFrame, new: pd.DataFrame, share: float) -> None:
    """Three phases. No glyph group of a later phase's new vendor was shown in an earlier one.

    The last phase holds only groups that neither data/raw nor the second phase held: what
    retraining gains there is not memory.
    """
    first = new["group"].map(lambda g: draw(f"phase:{g}") < 0.3)
    pools = {
        "stable": (STABLE, pool(world, new, VENDORS)),
        "shifted": (SHIFTED, pool(world, pd.concat([old, new[first]]), (NEW_VENDOR,))),
        "later": (LATER, pool(world, new[~first], (NEW_VENDOR,))),
    }
    for phase, (days, picks) in pools.items():
        count = max(20, round(PER_DAY[phase] * share))
        for i, when in enumerate(days):
            day(world, when, picks[i * count : (i + 1) * count], phase)


def unpack(root: Path, share: float = 1.0, seed: int = 0) -> dict[str, int]:
    """Write everything below ``root``; ``share`` of the glyph groups are used."""
    table = pd.read_csv(HERE / "labels.csv", dtype={"code": str, "group": str})
    table = table[table["group"].map(lambda g: draw(f"share:{g}") < share)]
    toned = table["code"].map(lambda c: draw(f"tone:{c}") < TONED)
    table = table[(table["tone"] == 0) | toned]
    world = World(
        root, table, {v: read_tar(v) for v in (*VENDORS, NEW_VENDOR)}, np.random.default_rng(seed)
    )
    for folder in ("data/raw", "data/deploy/incoming", "data/deploy/labels", "data/truth"):
        shutil.rmtree(root / folder, ignore_errors=True)
    future = table["group"].map(lambda g: draw(f"future:{g}") < FUTURE)
    past(world, table[~future])
    duplicates(world)
    broken(world)
    for folder, rows in world.rows.items():
        pd.DataFrame(rows).to_csv(root / folder / "metadata.csv", index=False, lineterminator="\n")
    world.rows.clear()  # deployment has no metadata
    deployment(world, table[~future], table[future], share)
    (root / "data/truth").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(world.truth).to_csv(root / "data/truth/truth.csv", index=False)
    noise = pd.DataFrame(world.truth)["noise"].value_counts()
    return {str(k) or "clean": int(v) for k, v in noise.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=HERE.parent.parent)
    parser.add_argument("--share", type=float, default=1.0, help="share of glyph groups to use")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(unpack(given.root, given.share, given.seed))


if __name__ == "__main__":
    main()
