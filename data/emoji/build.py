"""Rebuild the embedded image set from four npm packages (needs npm, and ``pip install resvg-py``).

    python data/emoji/build.py [--packages FOLDER]

Emoji art of four vendors, 64 px, with alpha: one tar of WebP files (quality 90) per vendor, plus
labels.csv. Byte-deterministic for equal Pillow and resvg versions: members sorted, no times.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

HERE = Path(__file__).parent
SIDE = 64
TONES = 2  # skin-tone variants kept per glyph: natural near-duplicates, but not a flood of them
PACKAGES = {  # npm name and version -> integrity as the registry states it
    "emoji-datasource-google@16.0.0": "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "emoji-datasource-twitter@16.0.0": "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    "openmoji@17.0.0": "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
    "@lobehub/fluent-emoji-3d@1.1.0": "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
}


def unpacked(package: str, work: Path) -> Path:
    """Download one npm package, check its sha512 and unpack it."""
    done = subprocess.run(
        ["npm", "pack", "--json", package], cwd=work, check=True, capture_output=True, text=True
    )
    file = work / json.loads(done.stdout)[0]["filename"]
    digest = hashlib.sha512(file.read_bytes()).digest()
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != PACKAGES[package]:
        raise SystemExit(f"{package}: {found} is not {PACKAGES[package]}. Fix: check the registry")
    with tarfile.open(file) as tar:
        tar.extractall(work / file.stem, filter="data")
    return work / file.stem / "package"


def plain(code: str) -> str:
    """Codepoints without variation selectors: vendors differ in where they write them."""
    return code.lower().replace("-fe0f", "")


def glyphs(listing: list[dict]) -> pd.DataFrame:
    """One row per glyph to keep: code, group, tone, category, label, name, file."""
    rows = []
    for entry in listing:
        variants = list(entry.get("skin_variations", {}).values())[:TONES]
        category = entry["category"].lower().replace(" & ", "-").replace(" ", "-")
        label = entry["subcategory"].lower().replace(" & ", "-").replace(" ", "-")
        for tone, variant in enumerate([entry, *variants]):
            rows.append(
                {
                    "code": variant["unified"].lower(),
                    "group": plain(entry["unified"]),
                    "tone": tone,
                    "category": category,
                    "label": f"{category}/{label}",
                    "name": entry["name"].lower(),
                    "file": variant["image"],
                }
            )
    return pd.DataFrame(rows).drop_duplicates("code").sort_values("code", ignore_index=True)


def fit(image: Image.Image) -> Image.Image:
    """RGBA at 64 px."""
    image = image.convert("RGBA")
    return image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.LANCZOS)


def find(vendor: str, folder: Path, table: pd.DataFrame) -> dict[str, Path]:
    """code -> file of one vendor."""
    if vendor in ("google", "twitter"):
        files = {
            c: folder / f"img/{vendor}/64" / f for c, f in zip(table.code, table.file, strict=True)
        }
    else:
        pattern = "color/svg/*.svg" if vendor == "openmoji" else "assets/*.webp"
        known = {plain(p.stem): p for p in folder.glob(pattern)}
        files = {c: known[plain(c)] for c in table.code if plain(c) in known}
    return {code: path for code, path in files.items() if path.exists()}


def load(path: Path) -> Image.Image:
    """Read a raster file or draw an SVG."""
    if path.suffix != ".svg":
        return fit(Image.open(path))
    import resvg_py

    data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=SIDE, height=SIDE))
    return fit(Image.open(io.BytesIO(data)))


def write_tar(path: Path, files: dict[str, Path]) -> None:
    """WebP members in code order; no times, no owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for code in sorted(files):
            buffer = io.BytesIO()
            load(files[code]).save(buffer, "WEBP", quality=90, method=6)
            info = tarfile.TarInfo(f"{code}.webp")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder of unpacked packages, no download")
    given = parser.parse_args().packages
    with tempfile.TemporaryDirectory() as temp:
        folders = {}
        for package in PACKAGES:
            vendor = next(v for v in ("google", "twitter", "openmoji", "fluent") if v in package)
            stem = package.removeprefix("@").replace("/", "-").replace("@", "-")
            folders[vendor] = given / stem / "package" if given else unpacked(package, Path(temp))
        listing = json.loads((folders["google"] / "emoji.json").read_text())
        table = glyphs(listing)
        for vendor, folder in folders.items():
            files = find(vendor, folder, table)
            table[vendor] = table.code.isin(files).astype(int)
            write_tar(HERE / f"{vendor}.tar", files)
            print(vendor, len(files), f"{(HERE / f'{vendor}.tar').stat().st_size / 1e6:.1f} MB")
    table.drop(columns="file").to_csv(HERE / "labels.csv", index=False)
    sums = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}"
        for p in sorted([*HERE.glob("*.tar"), HERE / "labels.csv"])
    ]
    (HERE / "SHA256SUMS").write_text("\n".join(sums) + "\n")


if __name__ == "__main__":
    main()
