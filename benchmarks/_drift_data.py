"""Rows for the drift benchmarks: Gaussian, and real features of the embedded emoji images."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "runs" / "drift-benchmark-features.npz"
Rows = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], Rows]  # (n, rng) -> (n, D)


def gaussian(dimensions: int) -> Draw:
    """Standard normal rows."""
    return lambda n, rng: rng.normal(size=(n, dimensions))


def grouped(draw: Draw, size: int, share: float) -> Draw:
    """Rows in groups of ``size`` that follow each other: ``share`` of the variance is a group's."""

    def rows(n: int, rng: np.random.Generator) -> Rows:
        common = draw(-(-n // size), rng).repeat(size, axis=0)[:n]
        return share**0.5 * common + (1 - share) ** 0.5 * draw(n, rng)

    return rows


def real(vendors: tuple[str, ...], dimensions: int) -> Draw:
    """Rows drawn with replacement from the seed encoder's features of these vendors' glyphs,
    reduced to the largest principal components of all: independent draws of one distribution."""
    table = features()
    every = np.concatenate([table[v] for v in sorted(table)])
    centre = every.mean(axis=0)
    _, scale, basis = np.linalg.svd(every - centre, full_matrices=False)
    scale = scale[:dimensions].max() / len(every) ** 0.5
    pool = (np.concatenate([table[v] for v in vendors]) - centre) @ basis[:dimensions].T / scale
    return lambda n, rng: pool[rng.integers(0, len(pool), n)]


def features() -> dict[str, Rows]:
    """Features (N, D) of each vendor's glyphs as ``data/emoji/unpack.py`` poses them."""
    if not CACHE.exists():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        np.savez(CACHE, **_embed())
    with np.load(CACHE, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.float64) for name in stored.files}


def _embed() -> dict[str, NDArray[np.float32]]:
    import pandas as pd

    from ssl_core.config import Config
    from ssl_core.progress import Reporter
    from ssl_core.stages.seed_embed import embed_all

    with tempfile.TemporaryDirectory() as name, Reporter("features") as report:
        root = Path(name)
        runpy.run_path(str(ROOT / "data/emoji/unpack.py"))["unpack"](root)
        truth = pd.read_csv(root / "data/truth/truth.csv", keep_default_na=False)
        truth = truth[truth["label"] != ""]
        deployed = truth["path"].str.contains("deploy/incoming")
        vendor = truth["detail"].where(deployed, truth["path"].str.split("/").str[2])
        found = embed_all(truth["path"].tolist(), root, Config(), report)
    return {str(v): found[(vendor == v).to_numpy()] for v in sorted(vendor.unique())}
