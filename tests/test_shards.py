"""Shards against tarfile and the webdataset library; the reader's order against its promises."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ssl_core import models, shards
from ssl_core.artifacts import sha256_file, write_json
from ssl_core.config import Config, Paths, SeedEncoder, Shard
from ssl_core.errors import HeadwaterError
from ssl_core.parallel import ordered_map
from ssl_core.shards import Sample, ShardReader
from ssl_core.stages import seed_embed, shard

SIDE = 16
MAX_BYTES = 40_960


def encoded(rng: np.random.Generator, ext: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, {"png": "PNG", "jpg": "JPEG"}[ext])
    return out.getvalue()


def samples(count: int = 90) -> list[Sample]:
    rng = np.random.default_rng(7)
    made = []
    for i in range(count):
        ext = "jpg" if i % 3 == 0 else "png"
        size = (SIDE, SIDE) if i % 2 else (int(rng.integers(8, 50)), int(rng.integers(8, 50)))
        label = None if i % 5 == 0 else f"class {i % 4}"
        made.append(
            Sample(
                "test" if i < 20 else "train",
                f"{i:064x}",
                ext,
                encoded(rng, ext, size),
                label,
                f"g{i // 2}",
                "here",
                f"data/raw/{i}.{ext}",
            )
        )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    shards.write(path, samples(), MAX_BYTES, 50)
    return path


def test_index_offsets_are_those_of_tarfile(folder: Path) -> None:
    index = pd.read_parquet(folder / "index.parquet")
    by_key = {s.key: s for s in samples()}
    assert sorted(index["key"]) == sorted(by_key)
    for name, rows in index.groupby("shard"):
        with tarfile.open(folder / str(name)) as tar:
            members = {m.name: m for m in tar.getmembers()}
            assert len(members) == 2 * len(rows)
            for row in rows.itertuples():
                member = members[f"{row.key}.{row.ext}"]
                assert (row.offset, row.size) == (member.offset_data, member.size)
                about = tar.extractfile(f"{row.key}.json")
                assert about is not None
                expected = by_key[row.key]
                assert json.load(about) == {
                    "sha256": row.key,
                    "label": expected.label,
                    "group": expected.group,
                    "source": expected.source,
                    "path": expected.path,
                }
        data = (folder / str(name)).read_bytes()
        for row in rows.itertuples():
            assert data[row.offset : row.offset + row.size] == by_key[row.key].image


def test_sizes_stay_below_the_cap_and_one_large_sample_stands_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = Sample("train", "f" * 64, "png", encoded(rng, "png", (200, 200)), "x", "g", "s", "p")
    some = [s for s in samples() if s.split == "train"]
    shards.write(tmp_path, [*some[:30], large, *some[30:]], MAX_BYTES, 200)
    about = json.loads((tmp_path / "index.json").read_text())
    assert about["classes"] == ["class 0", "class 1", "class 2", "class 3", "x"]
    assert about["max_side"] == 200
    over = {n: s for n, s in about["shards"].items() if s["bytes"] > MAX_BYTES}
    assert [s["samples"] for s in over.values()] == [1]
    assert len(large.image) > MAX_BYTES
    for name, known in about["shards"].items():
        assert (tmp_path / name).stat().st_size == known["bytes"]
    assert sum(s["samples"] for s in about["shards"].values()) == 71
    # Full shards are full: the next sample would not have fitted.
    assert len(about["shards"]) < 12


def test_equal_samples_give_equal_bytes_whatever_the_clock(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setenv("USER", "someone")
    shards.write(tmp_path, samples(), MAX_BYTES, 50)
    names = sorted(p.name for p in folder.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert len(names) > 5
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_the_webdataset_library_reads_them(folder: Path) -> None:
    import webdataset

    urls = [str(p) for p in sorted(folder.glob("train-*.tar"))]
    found = {}
    for item in webdataset.WebDataset(urls, shardshuffle=False):
        ext = "png" if "png" in item else "jpg"
        found[item["__key__"]] = (item[ext], json.loads(item["json"])["label"])
    assert found == {s.key: (s.image, s.label) for s in samples() if s.split == "train"}


def test_a_corrupted_or_missing_shard_is_named(tmp_path: Path) -> None:
    shards.write(tmp_path, samples(), MAX_BYTES, 50)
    assert shards.verify(tmp_path) == len(list(tmp_path.glob("*.tar")))
    victim = tmp_path / "train-000001.tar"
    whole = victim.read_bytes()
    for broken in (whole[:700] + bytes([whole[700] ^ 1]) + whole[701:], whole[:-512]):
        victim.write_bytes(broken)
        with pytest.raises(HeadwaterError, match="train-000001"):
            shards.verify(tmp_path)
    victim.unlink()
    with pytest.raises(HeadwaterError, match=r"train-000001\.tar: shard is missing"):
        shards.verify(tmp_path)
    with pytest.raises(HeadwaterError, match="holds no shards"):
        shards.verify(tmp_path / "elsewhere")


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    reader = ShardReader(folder, "train", SIDE, seed=3)
    orders = [reader.order(e) for e in (0, 1, 0, 5, 1)]
    for order in orders:
        assert sorted(order) == list(range(70))
    assert (orders[0] == orders[2]).all()
    assert (orders[1] == orders[4]).all()
    assert (orders[0] != orders[1]).any()
    other_rank = ShardReader(folder, "train", SIDE, seed=3, rank=1, world=2)
    assert (other_rank.order(5) == orders[3]).all()
    assert (ShardReader(folder, "train", SIDE, seed=4).order(0) != orders[0]).any()


def test_order_keeps_to_windows_of_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WINDOW", 2)
    reader = ShardReader(folder, "train", SIDE)
    visited = reader.frame["shard"].to_numpy()[reader.order(0)]
    sizes = Counter(visited)
    assert len(sizes) >= 4
    place, mixed = 0, False
    while place < len(visited):
        last = place + 1
        while len(set(visited[place : last + 1])) <= 2 and last < len(visited):
            last += 1
        window = visited[place:last]
        names = set(window)
        assert all(sum(window == n) == sizes[n] for n in names)  # whole shards, not parts
        mixed |= (window[1:] != window[:-1]).sum() > 1
        place = last
    assert mixed


@pytest.mark.parametrize(("world", "size"), [(1, 8), (2, 5), (3, 16), (1, 100)])
def test_each_epoch_visits_every_sample_once_over_all_ranks(
    folder: Path, world: int, size: int
) -> None:
    readers = [ShardReader(folder, "train", SIDE, rank=r, world=world) for r in range(world)]
    steps = 70 * 3 // (size * world) + 1
    streams = [list(r.batches(size, steps=steps)) for r in readers]
    assert all(len(rows) == size for stream in streams for rows, _ in stream)
    flat = np.concatenate([streams[r][k][0] for k in range(steps) for r in range(world)])
    for epoch in range(3):
        assert sorted(flat[epoch * 70 : (epoch + 1) * 70]) == list(range(70))


def test_resuming_equals_skipping_and_two_runs_agree(folder: Path) -> None:
    def make(cache: int) -> ShardReader:
        return ShardReader(
            folder, "train", SIDE, seed=1, rank=1, world=2, threads=3, cache_bytes=cache
        )

    whole = list(make(0).batches(9, steps=14))
    again = list(make(2**20).batches(9, steps=14))  # with a cache
    part = list(islice(make(20 * 3 * SIDE**2).batches(9, start=6), 8))  # part of it cached
    assert len(part) == 8
    for (rows, images), (rows2, images2) in zip(whole, again, strict=True):
        assert (rows == rows2).all()
        assert torch.equal(images, images2)
    for (rows, images), (rows2, images2) in zip(whole[6:], part, strict=True):
        assert (rows == rows2).all()
        assert torch.equal(images, images2)


def test_images_are_the_stored_ones_on_a_white_square(folder: Path) -> None:
    by_key = {s.key: s for s in samples()}
    reader = ShardReader(folder, None, SIDE, threads=2)
    rows, images = zip(*reader.sequential(32), strict=True)
    assert [len(r) for r in rows] == [32, 32, 26]
    assert np.concatenate(rows).tolist() == list(range(90)) == list(range(len(reader)))
    stack = torch.cat(images).numpy()
    assert stack.shape == (90, 3, SIDE, SIDE)
    assert stack.dtype == np.uint8
    exact = 0
    for row, key in enumerate(reader.frame["key"]):
        pixels = np.asarray(Image.open(io.BytesIO(by_key[key].image)).convert("RGB"))
        if pixels.shape == (SIDE, SIDE, 3):
            exact += 1
            assert (stack[row] == pixels.transpose(2, 0, 1)).all()
        elif by_key[key].ext == "png":  # a large JPEG is decoded at a fraction, so differs
            assert (stack[row] == shards.canvas(pixels, SIDE)).all()
    assert exact > 30


def test_canvas_fits_the_whole_image_and_leaves_a_white_margin() -> None:
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 20:] = (200, 100, 50)
    out = shards.canvas(wide, 20)
    assert out.shape == (3, 20, 20)
    assert (out[:, :7] == 255).all()
    assert (out[:, 12:] == 255).all()
    assert (out[:, 7:12, :8] == 0).all()
    assert (out[:, 7:12, 12:] == np.array([200, 100, 50])[:, None, None]).all()
    tall = shards.canvas(wide.transpose(1, 0, 2), 20)
    assert np.abs(tall.astype(int) - out.transpose(0, 2, 1)).max() <= 1
    tiny = shards.canvas(np.zeros((1, 400, 3), dtype=np.uint8), 20)  # thinner than a pixel
    assert (tiny[:, 9:11] == 0).any()


def alive() -> int:
    return sum(t.name.startswith("headwater") for t in threading.enumerate())


def test_closing_the_stream_stops_its_threads(folder: Path) -> None:
    reader = ShardReader(folder, "train", SIDE)
    stream = reader.batches(4)
    next(stream)
    assert alive() >= 1
    stream.close()  # type: ignore[attr-defined]
    assert alive() == 0


def test_batches_are_read_ahead_but_not_without_bound() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    stream = ordered_map(work, iter(range(10_000)), threads=2, ahead=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    time.sleep(0.1)
    assert 5 <= len(begun) <= 7
    stream.close()  # type: ignore[attr-defined]


def test_work_that_has_not_begun_is_dropped_at_the_close() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.02)

    stream = ordered_map(work, range(100), threads=2, ahead=60)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(begun) < 10


@pytest.mark.parametrize(("room", "decodes"), [(70, 70), (20, 20 + 4 * 50), (0, 4 * 70)])
def test_an_image_in_the_cache_is_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, room: int, decodes: int
) -> None:
    reader = ShardReader(folder, "train", SIDE, threads=1, cache_bytes=room * 3 * SIDE**2)
    decode, decoded = reader._decode, []
    monkeypatch.setattr(reader, "_decode", lambda row: decoded.append(row) or decode(row))
    assert len(list(reader.batches(10, steps=28))) == 28  # four epochs
    assert len(decoded) == decodes


@pytest.mark.parametrize("end", [100, 0])
def test_a_damaged_sample_is_named_and_the_threads_end(tmp_path: Path, end: int) -> None:
    shards.write(tmp_path, samples(), 2**20, 50)
    reader = ShardReader(tmp_path, "train", SIDE)
    row = reader.frame.iloc[33]
    file = tmp_path / row["shard"]
    data = bytearray(file.read_bytes())
    data[row["offset"] + end : row["offset"] + row["size"]] = bytes(int(row["size"]) - end)
    file.write_bytes(data)
    with pytest.raises(HeadwaterError, match=f"{row['shard']}:{row['key']}"):
        list(reader.sequential(8))
    assert alive() == 0


def test_a_missing_split_is_said(folder: Path) -> None:
    with pytest.raises(HeadwaterError, match="no image of split 'val'"):
        ShardReader(folder, "val", SIDE)


# ---- the stages on either side -----------------------------------------------------------------

FILES = {
    "drawing.png": (40, 30),
    "photo.jpg": (100, 50),
    "clear.png": (20, 20),
    "grey.png": (64, 64),
}


@pytest.fixture
def project(tmp_path: Path) -> Paths:
    """Four raw images of several kinds and the products that lead up to shard."""
    paths = Paths(tmp_path)
    rng = np.random.default_rng(1)
    rows = []
    for i, (name, (width, height)) in enumerate(FILES.items()):
        file = tmp_path / "raw" / name
        file.parent.mkdir(exist_ok=True)
        ramp = np.linspace(0, 255, width * height * 4).reshape(height, width, 4)
        image = Image.fromarray((ramp * rng.uniform(0.3, 1, 4)).astype(np.uint8), "RGBA")
        mode = {"clear.png": "RGBA", "grey.png": "L"}.get(name, "RGB")
        image.convert(mode).save(file)
        rows.append(
            {
                "path": f"raw/{name}",
                "sha256": sha256_file(file),
                "source": "raw",
                "group": str(i),
                "label": None if i == 2 else "x",
                "format": "JPEG" if "jpg" in name else "PNG",
                "keep": i < 3,
                "split": "test" if i == 0 else "train",
            }
        )
    frame = pd.DataFrame(rows)
    for folder in (paths.manifest, paths.validation, paths.curated):
        folder.mkdir(parents=True)
        write_json(folder / "lineage.json", {})
    frame.to_parquet(paths.manifest / "manifest.parquet", index=False)
    frame.to_parquet(paths.curated / "curated.parquet", index=False)
    write_json(paths.validation / "report.json", {"success": True, "expectations": []})
    return paths


def test_the_shard_stage_stores_kept_images_scaled_and_without_loss(project: Paths) -> None:
    cfg = Config(shard=Shard(max_side=40))
    counts = shard.run(cfg, project)
    assert (counts["train"], counts["test"], counts["shards"]) == (2, 1, 2)
    assert shards.verify(project.shards) == 2
    index = pd.read_parquet(project.shards / "index.parquet")
    assert index["label"].isna().sum() == 1
    keys = {sha256_file(project.root / "raw" / n): n for n in FILES}
    stored = {}
    for row in index.itertuples():
        data = (project.shards / row.shard).read_bytes()[row.offset : row.offset + row.size]
        stored[keys[row.key]] = Image.open(io.BytesIO(data))
    assert sorted(stored) == ["clear.png", "drawing.png", "photo.jpg"]
    assert {n: i.format for n, i in stored.items()} == {
        "clear.png": "PNG",
        "drawing.png": "PNG",
        "photo.jpg": "JPEG",
    }
    assert stored["photo.jpg"].size == (40, 20)
    original = Image.open(project.root / "raw/drawing.png")
    assert (np.asarray(stored["drawing.png"]) == np.asarray(original)).all()
    white = Image.new("RGBA", (20, 20), "white")
    flat = Image.alpha_composite(white, Image.open(project.root / "raw/clear.png")).convert("RGB")
    difference = np.asarray(stored["clear.png"]).astype(int) - np.asarray(flat)
    assert np.abs(difference).max() <= 1
    first = {p.name: p.read_bytes() for p in project.shards.iterdir()}
    shard.run(cfg, project)
    assert {p.name: p.read_bytes() for p in project.shards.iterdir()} == first


def test_a_file_that_changed_since_ingest_stops_the_shard_stage(project: Paths) -> None:
    file = project.root / "raw/drawing.png"
    Image.new("RGB", (40, 30)).save(file)
    with pytest.raises(HeadwaterError, match=r"raw/drawing\.png: changed since ingest"):
        shard.run(Config(), project)
    file.unlink()
    with pytest.raises(HeadwaterError, match=r"raw/drawing\.png"):
        shard.run(Config(), project)
    assert not project.shards.exists()


def test_equal_files_are_stored_once_where_the_exact_step_is_off(project: Paths) -> None:
    frame = pd.read_parquet(project.curated / "curated.parquet")
    twice = pd.concat([frame, frame.assign(path="raw/copy")])
    assert shard.order(twice)["sha256"].is_unique
    assert len(shard.order(twice)) == 3


def test_seed_features_are_in_manifest_order(project: Paths) -> None:
    cfg = Config(seed_encoder=SeedEncoder(image_size=32, batch_size=3))
    assert seed_embed.run(cfg, project)["images"] == 4
    found = np.load(project.seed_embeddings / "embeddings.npy")
    assert found.dtype == np.float32
    module, mean, std = models.seed_encoder(cfg.seed_encoder.encoder)
    for row, name in enumerate(FILES):
        if name == "clear.png":
            continue  # flattening is ingest's business, tested there
        pixels = np.asarray(Image.open(project.root / "raw" / name).convert("RGB"))
        square = torch.from_numpy(shards.canvas(pixels, 32)).double() / 255
        colours = (torch.tensor(c)[:, None, None] for c in (mean, std))
        with torch.inference_mode():
            x = (square - next(colours)) / next(colours)
            alone = module(x[None].float())[0].numpy()
        cosine = found[row] @ alone / np.linalg.norm(found[row]) / np.linalg.norm(alone)
        assert cosine > 0.98, name
        others = [found[o] @ alone / np.linalg.norm(found[o]) for o in range(4) if o != row]
        assert max(others) < found[row] @ alone / np.linalg.norm(found[row]), name


def test_seed_embed_refuses_what_failed_validation(project: Paths) -> None:
    write_json(
        project.validation / "report.json",
        {
            "success": False,
            "expectations": [{"name": "classes", "success": False, "severity": "critical"}],
        },
    )
    with pytest.raises(HeadwaterError, match="classes: failed"):
        seed_embed.run(Config(), project)
