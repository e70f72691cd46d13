"""Shards against tarfile and the webdataset library; the stages on either side of them."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from planted_shards import MAX_BYTES, encoded, samples

from ssl_core import decoding, models, shards, store
from ssl_core.artifacts import sha256_file, write_json
from ssl_core.config import Config, Paths, SeedEncoder, Shard
from ssl_core.errors import HeadwaterError
from ssl_core.shards import Sample
from ssl_core.stages import seed_embed, shard


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
                }
        data = (folder / str(name)).read_bytes()
        for row in rows.itertuples():
            assert data[row.offset : row.offset + row.size] == by_key[row.key].image


def test_sizes_stay_below_the_cap_and_one_large_sample_stands_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = Sample("train", "f" * 64, "png", encoded(rng, "png", (200, 200)), "x", "g", "s")
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
    assert store.verify(tmp_path) == len(list(tmp_path.glob("*.tar")))
    victim = tmp_path / "train-000001.tar"
    whole = victim.read_bytes()
    for broken in (whole[:700] + bytes([whole[700] ^ 1]) + whole[701:], whole[:-512]):
        victim.write_bytes(broken)
        with pytest.raises(HeadwaterError, match="train-000001"):
            store.verify(tmp_path)
    victim.unlink()
    with pytest.raises(HeadwaterError, match=r"train-000001\.tar: shard is missing"):
        store.verify(tmp_path)
    with pytest.raises(HeadwaterError, match="holds no shards"):
        store.verify(tmp_path / "elsewhere")


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
    assert store.verify(project.shards) == 2
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
        square = torch.from_numpy(decoding.canvas(pixels, 32)).double() / 255
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
