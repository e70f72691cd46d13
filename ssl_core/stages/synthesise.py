"""Images for rare classes, as a part of stage curate: made from the training images, then judged.

It is no stage of its own in the graph of record. It needs exactly what curate has (labels, split,
seed features) and gives rows of curated.parquet, so that every chain without it stays as it is:
no further process, product or edge. What takes long, the training of a model, is kept in ``runs``.

Every image's source is ``synthetic:<generator>``. It is in the train split, and stage shard refuses
it anywhere else; stage embed leaves it out, so that no probe is fitted or tested on it.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from .. import images, plugins
from ..config import Config, Paths, SeedEncoder
from ..curation._vectors import phash_bits
from ..decoding import canvas
from ..embed import frame as embeddings_of
from ..embed import with_features
from ..errors import HeadwaterError
from ..parallel import ordered_map
from ..progress import Reporter
from ..shards import SYNTHETIC, synthetic
from ..synth import _filter
from ..synth._pool import Made, Pixels, Pool, checked
from ..types import Array
from . import seed_embed

TAR, TABLE = "synthetic.tar", "synthetic.parquet"
KEPT_APART = "synthetic"  # why an image that came marked is left out
COLUMNS = (
    "sha256",
    "generator",
    "label",
    "reason",
    "cosine",
    "nearest",
    "likeness",
    "rank",
    "parents",
)


@dataclass(frozen=True)
class Candidate:
    """A candidate as it is stored."""

    made: Made
    generator: str
    data: bytes
    facts: images.Facts


def apart(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out images that came marked as synthetic and belong to the test side."""
    wrong = synthetic(frame["source"]) & (frame["split"] == "test").to_numpy() & frame["keep"]
    frame.loc[wrong, "keep"] = False
    frame.loc[wrong, "reason"] = KEPT_APART
    return frame


def options(cfg: Config) -> dict[str, Any]:
    """The options of each generator.

    Raises:
        HeadwaterError: an unknown generator or option, or images that are not RGB.
    """
    names, given = cfg.synthesise.generators, cfg.synthesise.options
    if names and cfg.data.channels != 3:
        rule = "make RGB images only"
        raise HeadwaterError(f"data.channels = {cfg.data.channels}: generators", rule, "name none")
    if strange := sorted(set(given) - set(names)):
        rule = "are of a generator that is not in synthesise.generators"
        raise HeadwaterError(f"synthesise.options.{strange[0]}", rule, "name it there, or not here")
    kinds = {name: plugins.load("synth", name).Options for name in names}
    where = "synthesise.options"
    return {n: checked(kind, given.get(n, {}), f"{where}.{n}") for n, kind in kinds.items()}


# ---- what is there, and what is wanted ---------------------------------------------------------


def learned(frame: pd.DataFrame) -> pd.Series:
    """Rows (N,) that generators may learn from: real, kept, of the train split."""
    real = ~synthetic(frame["source"])
    return frame["keep"] & (frame["split"] == "train") & real


def missing(labels: pd.Series, cfg: Config) -> dict[str, int]:
    """Class -> how many images it lacks, for classes that are rare and not too rare."""
    s, count = cfg.synthesise, labels.value_counts().sort_index()
    rare = count[(count >= s.least) & (count < s.target)]
    return {str(name): s.target - int(n) for name, n in rare.items()}


def pool_of(
    frame: pd.DataFrame, wanted: dict[str, int], classes: list[str], cfg: Config, root: Path
) -> tuple[Pool, pd.DataFrame]:
    """Rare classes whole, and of the rest as many as ``synthesise.pool`` allows; decoded."""
    rows = frame[learned(frame)].drop_duplicates("sha256").sort_values("sha256")
    rare = rows["label"].isin(wanted)
    rest = rows[~rare].head(max(0, cfg.synthesise.pool - int(rare.sum())))
    chosen = pd.concat([rows[rare], rest]).sort_values("sha256")
    side, channels = cfg.synthesise.side, cfg.data.channels

    def load(ref: str) -> Pixels:
        return seed_embed.square(ref, root, side, channels).transpose(1, 2, 0)  # -> (S, S, 3)

    pixels = np.stack(list(ordered_map(load, chosen["path"], 2, ahead=64)))
    codes = pd.Categorical(chosen["label"], categories=classes).codes.astype(np.int64)
    return Pool(pixels, codes, tuple(classes)), chosen


# ---- candidates --------------------------------------------------------------------------------


def stored(made: Made, generator: str) -> Candidate:
    """As PNG, described as ingest describes a file."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(made.pixels)).save(out, "PNG")
    return Candidate(made, generator, out.getvalue(), images.examine(out.getvalue()))


def make(
    cfg: Config, pool: Pool, wanted: dict[str, int], work: Path, report: Reporter
) -> list[Candidate]:
    """What all generators offer; each is asked for its share, several times over."""
    own, names = options(cfg), cfg.synthesise.generators
    place = {name: i for i, name in enumerate(pool.classes)}
    asked = {
        place[k]: int(np.ceil(n * cfg.synthesise.tries / len(names))) for k, n in wanted.items()
    }
    found: list[Candidate] = []
    for name in names:
        generate = plugins.load("synth", name).generate
        before = len(found)
        for made in generate(pool, asked, own[name], cfg.seed, work, report):
            found.append(stored(made, name))
        report.log(f"{name}: {len(found) - before} candidates for {len(asked)} classes")
    return found


def embed(found: list[Candidate], cfg: SeedEncoder) -> Array:
    """Seed features (M, D) of the candidates, decoded like any other image."""
    side, size, parts = cfg.image_size, cfg.batch_size, []
    for first in range(0, len(found), size):
        chunk = found[first : first + size]
        squares = [canvas(images.decode(c.data, side), side) for c in chunk]
        parts.append(seed_embed.embed(cfg, torch.from_numpy(np.stack(squares))))
    return np.concatenate(parts)


# ---- the judgement -----------------------------------------------------------------------------


def real_of(frame: pd.DataFrame, features: Array, classes: list[str]) -> _filter.Real:
    """All real images, whatever became of them: a copy of any of them is a copy."""
    real = ~synthetic(frame["source"])
    known = (learned(frame) & frame["label"].notna()).to_numpy()
    rows = frame.assign(key=frame["sha256"])[["key", "label", "group", "source"]]
    train = with_features(embeddings_of(rows[known], classes), features[known])
    return _filter.Real(features[real], phash_bits(frame.loc[real, "phash"]), train)


def table_of(
    found: list[Candidate], made: Array, real: _filter.Real, need: dict[int, int], cfg: Config
) -> pd.DataFrame:
    """The judgement on each candidate."""
    labels = np.array([c.made.label for c in found], np.int64)
    bits = phash_bits(pd.Series([c.facts.phash for c in found]))
    candidates = _filter.Candidates(made, bits, labels)
    table = _filter.judge(candidates, real, cfg.synthesise, cfg.curate)
    table["generator"], table["label"] = [c.generator for c in found], labels
    return _filter.choose(table, made, need, cfg.synthesise.copy_cosine)


def rows_of(taken: list[Candidate], classes: list[str], paths: Paths, dtypes: Any) -> pd.DataFrame:
    """Rows of curated.parquet for the accepted ones, whose files are members of the tar."""
    place = (paths.curated / TAR).relative_to(paths.root).as_posix()
    rows = [
        vars(c.facts)
        | {
            "path": f"{place}::{c.facts.sha256}.png",
            "label": classes[c.made.label],
            "group": f"{SYNTHETIC}{c.facts.sha256}",
            "source": SYNTHETIC + c.generator,
            "captured_at": None,
            "dup_group": -1,
            "dup_of": None,
            "cluster": -1,
            "split": "train",
            "keep": True,
            "reason": "",
            "detail": "",
        }
        for c in taken
    ]
    frame = pd.DataFrame(rows, columns=list(dtypes))
    return frame.astype({k: v for k, v in dtypes.items() if k in frame})


def write_tar(file: Path, taken: list[Candidate]) -> None:
    """Equal images give equal bytes."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for c in sorted(taken, key=lambda c: c.facts.sha256):
            info = tarfile.TarInfo(f"{c.facts.sha256}.png")
            info.size, info.mode = len(c.data), 0o644
            tar.addfile(info, io.BytesIO(c.data))


def counts_of(table: pd.DataFrame) -> dict[str, int]:
    """How many were accepted, and why not the others, by generator."""
    fate = table["generator"] + ": " + table["reason"].replace("", "accepted")
    return {str(k): int(n) for k, n in fate.value_counts().sort_index().items()}


def extend(
    cfg: Config, paths: Paths, frame: pd.DataFrame, features: Array, out: Path, report: Reporter
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The frame with accepted images for rare classes, and what became of all candidates.

    Writes synthetic.tar and synthetic.parquet (every candidate, with its reason and figures) into
    ``out``. Without ``synthesise.generators`` nothing is done.

    Raises:
        HeadwaterError: bad options, fewer than two classes, or a generator that cannot work.
    """
    if not options(cfg):
        return frame, {}
    known = frame.loc[learned(frame), "label"].dropna()
    classes = sorted(known.unique().tolist())
    if len(classes) < 2:
        rule = "carry labels of fewer than two classes: there is no rare one"
        raise HeadwaterError("training images", rule, "set synthesise.generators: []")
    wanted = missing(known, cfg)
    if not wanted:
        report.log(f"synthesise: no class has fewer than {cfg.synthesise.target} images")
        return frame, {}
    pool, rows = pool_of(frame, wanted, classes, cfg, paths.root)
    work = paths.runs / "synthesise"
    work.mkdir(parents=True, exist_ok=True)
    found = make(cfg, pool, wanted, work, report)
    unique = {c.facts.sha256: c for c in reversed(found)}
    found = [c for c in found if unique[c.facts.sha256] is c]
    need = {classes.index(name): n for name, n in wanted.items()}
    table = table_of(
        found, embed(found, cfg.seed_encoder), real_of(frame, features, classes), need, cfg
    )
    shas = rows["sha256"].tolist()
    real = frame.loc[~synthetic(frame["source"]), "sha256"].to_numpy()
    table = table.assign(
        sha256=[c.facts.sha256 for c in found],
        label=[classes[c.made.label] for c in found],
        nearest=real[table["nearest"]],
        parents=[" ".join(sorted({shas[i] for i in c.made.parents})) for c in found],
    )
    taken = [c for c, reason in zip(found, table["reason"], strict=True) if not reason]
    table[list(COLUMNS)].to_parquet(out / TABLE, engine="pyarrow", index=False)
    write_tar(out / TAR, taken)
    more = rows_of(taken, classes, paths, frame.dtypes.to_dict())
    counts = counts_of(table)
    report.log(f"synthesise: {len(taken)} accepted of {len(found)}", **counts)
    return pd.concat([frame, more], ignore_index=True).astype(frame.dtypes.to_dict()), counts
