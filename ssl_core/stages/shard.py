"""Kept images, normalised and packed into WebDataset shards."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from .. import bands, images, shards, upload
from ..artifacts import atomic_dir, write_lineage
from ..bands import Pixels
from ..config import Config, Paths
from ..errors import HeadwaterError
from ..parallel import ordered_map
from ..progress import Reporter
from ..shards import Sample
from ..validation import _gx
from ..validation import shards as suite

LOSSY = {"JPEG", "MPO", "WEBP"}  # source formats that have lost detail already
QUALITY = 95


def encode(pixels: Pixels, lossy: bool) -> tuple[bytes, str]:
    """(H, W, C) -> bytes and extension, without metadata; equal pixels give equal bytes.

    PNG keeps drawings exact. A photo that was lossy anyway stays JPEG, several times smaller
    than PNG, at a quality and full chroma where the second loss is not visible. What is not RGB
    is stored as .npy.
    """
    if pixels.shape[2] != 3:
        return bands.pack(pixels), "npy"
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    if lossy:
        image.save(out, "JPEG", quality=QUALITY, subsampling=0)
        return out.getvalue(), "jpg"
    image.save(out, "PNG")
    return out.getvalue(), "png"


def make_sample(row: Any, root: Path, max_side: int, channels: int = 3) -> Sample:
    """Read, check, decode, scale and encode one row of curated.parquet.

    Raises:
        HeadwaterError: the file is not the one that was ingested.
    """
    fix = "restore the file, or run stage ingest again"
    try:
        data = images.read_bytes(row.path, root)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise HeadwaterError(row.path, "changed since ingest", fix)
        pixels = images.decode(data, max_side, channels=channels)
        image, ext = encode(pixels, row.format in LOSSY)
    except (images.Reject, OSError) as error:
        rule = f"was readable at ingest and is not now ({error})"
        raise HeadwaterError(row.path, rule, fix) from error
    label = None if pd.isna(row.label) else str(row.label)
    return Sample(row.split, row.sha256, ext, image, label, row.group, row.source)


def order(frame: pd.DataFrame) -> pd.DataFrame:
    """Kept rows by split and sha256: a fixed order that mixes sources and classes in a shard.

    Where the ``exact`` step is off, equal files are stored once: the key is the content.

    Raises:
        HeadwaterError: a synthetic image is not in the train split.
    """
    wrong = frame[frame["keep"] & (frame["split"] != "train") & shards.synthetic(frame["source"])]
    if len(wrong):
        rule = "is synthetic and in the test split: results would be about a generator"
        raise HeadwaterError(wrong["path"].iloc[0], rule, "run stage curate again")
    kept = frame[frame["keep"]].sort_values(["split", "sha256", "path"])
    return kept.drop_duplicates("sha256")


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write shards/: <split>-<number>.tar, index.parquet and index.json.

    With ``shard.place``, the tars are there and place.json stands for them.

    Raises:
        HeadwaterError: an image changed since ingest, or S3 does not take the shards.
    """
    frame = order(pd.read_parquet(paths.curated / "curated.parquet"))
    threads, side, channels = os.cpu_count() or 1, cfg.shard.max_side, cfg.data.channels
    with Reporter("shard") as report, atomic_dir(paths.shards) as out:
        made = ordered_map(
            lambda row: make_sample(row, paths.root, side, channels),
            frame.itertuples(index=False),
            threads,
            ahead=32 * threads,
        )
        with report.bar(len(frame), "img") as advance:

            def counted() -> Any:
                for sample in made:
                    yield sample
                    advance()

            index = shards.write(out, counted(), cfg.shard.max_bytes, side, channels)
        counts = {
            "train": int((index["split"] == "train").sum()),
            "test": int((index["split"] == "test").sum()),
            "shards": int(index["shard"].nunique()),
            "bytes": sum(f.stat().st_size for f in out.glob("*.tar")),
        }
        counts |= _gx.write(out, suite.judge(out, frame["sha256"].tolist()))
        if cfg.shard.place:
            upload.move(out, cfg.shard.place)
        config = cfg.section("shard") | {"channels": channels}
        write_lineage(out, "shard", config, {"curated": paths.curated}, counts)
        report.log(f"{len(index)} images in {counts['shards']} shards", **counts)
    return counts
