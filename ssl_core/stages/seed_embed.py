"""Features of the pinned seed encoder for every image of the manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import bands, engine, images, models
from ..artifacts import atomic_dir, atomic_file, sha256_json, write_lineage
from ..config import Config, Paths, SeedEncoder
from ..decoding import Pixels, canvas
from ..errors import HeadwaterError
from ..parallel import ordered_map
from ..progress import Reporter
from ..types import Array
from ..validation import _gx, embeddings
from ._gate import require_valid


def square(ref: str, root: Path, side: int, channels: int = 3) -> Pixels:
    """One image of the manifest on a white square, as RGB (``bands.to_rgb``): (3, side, side).

    Raises:
        HeadwaterError: the file changed or vanished since ingest and cannot be decoded now.
    """
    try:
        pixels = images.decode(images.read_bytes(ref, root), side, channels=channels)
        return canvas(bands.to_rgb(pixels), side)
    except (images.Reject, OSError) as error:
        rule = f"was readable at ingest and is not now ({error})"
        raise HeadwaterError(ref, rule, "run stage ingest again") from error


def load(root: Path, cfg: SeedEncoder, channels: int, refs: Sequence[str]) -> Tensor:
    """Decoded images, uint8 (B, 3, S, S)."""
    return torch.from_numpy(np.stack([square(r, root, cfg.image_size, channels) for r in refs]))


@torch.inference_mode()
def features(
    module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], pixels: Tensor
) -> Array:
    """uint8 (B, 3, S, S) -> float32 (B, D), in bf16 on a GPU.

    On CPU fp32: with AVX512-BF16 bf16 was twice as fast (1,211 against 564 images/s per core),
    but then the CPU's model would have a say in which images are copies of each other.
    """
    device = next(module.parameters()).device
    x = models.preprocess(pixels.to(device), mean, std).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        out = module(x)
    return np.asarray(out.float().cpu().numpy(), dtype=np.float32)


@lru_cache(maxsize=1)
def encoder(name: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The seed encoder on the device, with its mean and standard deviation."""
    module, mean, std = models.seed_encoder(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = torch.channels_last
    ready = module.eval().to(device, memory_format=form)  # type: ignore[call-overload]
    return ready, mean, std


def embed(cfg: SeedEncoder, pixels: Tensor) -> Array:
    """Features (B, D) of at most ``batch_size`` images (B, 3, S, S), in a batch of just that size.

    So an image's features do not depend on which others are new with it: kernels are chosen by
    the size of a batch, and round differently.
    """
    short = cfg.batch_size - len(pixels)
    whole = torch.cat([pixels, pixels.new_zeros((short, *pixels.shape[1:]))]) if short else pixels
    return features(*encoder(cfg.encoder), whole)[: len(pixels)]


def embed_there(
    root: Path, cfg: SeedEncoder, channels: int, threads: int, refs: Sequence[str]
) -> Array:
    """Features (B, D) of one batch in a process of Ray's, with as many threads as here."""
    torch.set_num_threads(threads)
    return embed(cfg, load(root, cfg, channels, refs))


def embed_all(refs: list[str], root: Path, cfg: Config, report: Reporter) -> Array:
    """Features (N, D) of all refs in order. A GPU here is preferred to Ray's processors."""
    own, channels, size = cfg.seed_encoder, cfg.data.channels, cfg.seed_encoder.batch_size
    chunks = [refs[i : i + size] for i in range(0, len(refs), size)]
    parts: list[Array] = []
    with report.bar(len(refs), "img") as advance:
        if cfg.scale.engine == "ray" and not torch.cuda.is_available():
            work = partial(embed_there, root.absolute(), own, channels, torch.get_num_threads())
            for found in engine.each(work, chunks, cfg.scale, ahead=2):
                parts.append(found)
                advance(len(found))
        else:
            threads = os.cpu_count() or 1
            read = partial(load, root, own, channels)
            for pixels in ordered_map(read, chunks, threads, ahead=2 * threads):
                parts.append(embed(own, pixels))
                advance(len(pixels))
    return np.concatenate(parts)


def cache(cfg: Config, paths: Paths) -> Path:
    """Features of earlier runs; only for this encoder at this size."""
    return paths.runs / f"seed-features-{sha256_json(cfg.section('seed_encoder'))[:12]}.npz"


def recall(file: Path) -> dict[str, Array]:
    """sha256 -> features (D,); nothing where the cache is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(zip(stored["sha256"].tolist(), stored["features"], strict=True))
    except Exception:  # a cache may only save time
        return {}


def with_cache(frame: pd.DataFrame, cfg: Config, paths: Paths, report: Reporter) -> Array:
    """Features (N, D) in the frame's order; only content not seen before is embedded."""
    file = cache(cfg, paths)
    known = recall(file)
    new = frame[~frame["sha256"].isin(known)].drop_duplicates("sha256")
    if len(new):
        refs = new["path"].tolist()
        made = embed_all(refs, paths.root, cfg, report)
        known |= dict(zip(new["sha256"], made, strict=True))
    features = np.stack([known[sha] for sha in frame["sha256"]])
    with atomic_file(file) as temp, temp.open("wb") as stream:
        np.savez(stream, sha256=frame["sha256"].to_numpy(str), features=features)
    report.log(f"{len(frame) - len(new)} of {len(frame)} known from earlier runs", made=len(new))
    return features


def run(cfg: Config, paths: Paths) -> dict[str, Any]:
    """Write seed_embeddings/: embeddings.npy (N, D), rows as in manifest.parquet, and what was
    expected of it.

    Raises:
        HeadwaterError: validation failed, or an image changed since ingest.
    """
    require_valid(paths)
    frame = pd.read_parquet(paths.manifest / "manifest.parquet", columns=["path", "sha256"])
    with Reporter("seed_embed") as report, atomic_dir(paths.seed_embeddings) as out:
        found = with_cache(frame, cfg, paths, report)
        np.save(out / "embeddings.npy", found)
        counts = {"images": len(found), "dimensions": found.shape[1]}
        keys = frame["sha256"].fillna("").tolist()
        stored: Array = np.load(out / "embeddings.npy", mmap_mode="r")
        counts |= _gx.write(out, embeddings.judge(stored, keys, keys))
        inputs = {"manifest": paths.manifest, "validation": paths.validation}
        write_lineage(out, "seed_embed", cfg.section("seed_encoder"), inputs, counts)
        report.log(f"{counts['images']} images, {counts['dimensions']} dimensions")
    return counts
