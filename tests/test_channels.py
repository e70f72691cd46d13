"""Images of other than three channels: arrays judged, stored without loss, trained on, served."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, photo_tiles
from PIL import Image

from ssl_core import bands, decoding, embed, images, job, models, shards, sources
from ssl_core.artifacts import read_json
from ssl_core.augment import Augmenter
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.images import Reject
from ssl_core.reader import ShardReader
from ssl_core.shards import Sample
from ssl_core.stages import (
    curate,
    ingest,
    pretrain,
    seed_embed,
    shard,
    validate,
)
from ssl_core.stages import embed as embed_stage
from ssl_core.types import View

TILE = photo_tiles()[20][1]  # (48, 48, 3)


def five(rgb: np.ndarray) -> np.ndarray:
    """RGB and two bands made of it, as from a camera with more filters: (H, W, 5)."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    index = 127.5 + 127.5 * (g - r) / np.maximum(g + r, 1)
    edges = np.abs(np.diff(b, axis=0, prepend=b[:1])) * 2
    extra = np.clip(np.stack([index, edges], axis=2), 0, 255).round().astype(np.uint8)
    return np.concatenate([rgb, extra], axis=2)


def npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


ARRAY = five(TILE)
WHOLE = npy(ARRAY)


def refusal(data: bytes, channels: int = 5) -> Reject:
    """Both ways to read a file refuse it for the same reason."""
    with pytest.raises(Reject) as first:
        images.examine(data, 1, channels=channels)
    with pytest.raises(Reject) as second:
        images.decode(data, 64, channels=channels)
    assert str(first.value) == str(second.value)
    return first.value


# ---- judging -----------------------------------------------------------------------------------


def test_an_array_is_described_and_decoded_as_it_is() -> None:
    facts = images.examine(WHOLE, 48, 48 * 48, 5)
    assert (facts.width, facts.height, facts.mode, facts.format) == (48, 48, "5 bands", "NPY")
    assert facts.bytes == len(WHOLE)
    assert facts.phash == str(imagehash.phash(Image.fromarray(TILE)))  # of the first three bands
    assert (images.decode(WHOLE, 64, channels=5) == ARRAY).all()
    assert images.decode(WHOLE, 64, channels=5).flags.writeable
    turned = np.asfortranarray(ARRAY[:30])
    assert (images.decode(npy(turned), 64, channels=5) == ARRAY[:30]).all()
    with pytest.raises(Reject, match="too-small"):
        images.examine(WHOLE, 49, channels=5)


@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_shrinking_treats_every_band_alike(channels: int) -> None:
    wide = np.concatenate([ARRAY[:30]] * 4, axis=2)[..., :channels]
    out = images.decode(npy(wide), 24, channels=channels)
    assert out.shape == (15, 24, channels)
    for c in range(channels):
        alone = Image.fromarray(wide[..., c]).resize((24, 15), Image.Resampling.BICUBIC)
        assert (out[..., c] == np.asarray(alone)).all()


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (npy(ARRAY[..., :4]), "channels", r"4 \(shape \(48, 48, 4\)\); data.channels is 5"),
        (npy(ARRAY.transpose(2, 0, 1)), "channels", "the bands come last"),
        (npy(ARRAY[..., 0]), "channels", "1 "),
        (npy(ARRAY.astype(np.uint16) * 16), "16-bit", r"dtype uint16; save uint8: np\.clip"),
        (npy(ARRAY.astype(np.float32)), "16-bit", "dtype float32"),
        (npy(ARRAY > 3), "unsupported-mode", "bool array"),
        (npy(ARRAY.astype(np.int8)), "unsupported-mode", "int8 array"),
        (npy(ARRAY[None]), "unsupported-mode", r"\(1, 48, 48, 5\)"),
        (npy(np.zeros((0, 4, 5), np.uint8)), "corrupt", "4 × 0"),
        (WHOLE[:-1], "truncated", "makes"),
        (WHOLE[:60], "truncated", ""),
        (WHOLE + b"\0", "corrupt", "makes"),
        (WHOLE[:20] + b"\xff" * 8 + WHOLE[28:], "corrupt", ""),
        (WHOLE.replace(b"(48, 48, 5)", b"(-48,48, 5)"), "corrupt", ""),
    ],
    ids=range(14),
)
def test_bad_arrays_are_refused_with_their_reason(data: bytes, reason: str, says: str) -> None:
    found = refusal(data)
    assert found.reason == reason
    assert re.search(says, found.detail), found.detail
    assert len(found.detail) <= ingest.DETAIL


def test_nothing_is_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("it was unpickled",)

    bomb = np.empty((48, 48), dtype=object)
    bomb[0, 0] = Bomb()
    assert refusal(npy(bomb, allow_pickle=True), 1).reason == "unsupported-mode"
    structured = npy(np.zeros((48, 48), dtype=[("ü", "u1")]))
    assert refusal(structured, 1).reason in ("corrupt", "unsupported-mode")


def test_a_header_that_lies_costs_no_memory() -> None:
    lie = npy(np.zeros((1, 1, 5), np.uint8))
    lie = lie.replace(b"(1, 1, 5), }" + b" " * 12, b"(9000000, 9000000, 5), }")
    assert bands.read_header(lie).shape == (9_000_000, 9_000_000, 5)
    assert refusal(lie).reason == "too-many-pixels"


def test_hostile_bytes_raise_nothing_but_rejects() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(400):
        data = bytearray(WHOLE[: int(rng.integers(128, len(WHOLE) + 1))])
        for place in rng.integers(6, 128, 3):
            data[place] ^= int(rng.integers(1, 256))
        try:
            images.examine(bytes(data), 1, channels=5)
        except Reject as reject:
            seen.append(reject)
    assert len(seen) > 250
    assert {r.reason for r in seen} >= {"truncated", "corrupt"}
    assert not any(" at 0x" in r.detail for r in seen)  # would differ from run to run


def picture(mode: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(TILE).convert(mode).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_images_have_one_channel(kind: str) -> None:
    data = picture("L", kind)
    found = images.decode(data, 64, channels=1)
    assert found.shape == (48, 48, 1)
    assert (found[..., 0] == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert images.decode(data, 20, channels=1).shape == (20, 20, 1)
    assert images.examine(data, channels=1).mode == "L"
    assert images.decode(npy(TILE[..., 0]), 64, channels=1).shape == (48, 48, 1)
    assert refusal(picture("RGB", kind), 1).reason == "channels"
    assert "mode RGB" in refusal(picture("RGB", kind), 1).detail


def test_pictures_are_no_multi_band_images_and_arrays_no_pictures() -> None:
    assert refusal(picture("RGBA"), 4).detail == "3 (mode RGBA); data.channels is 4"
    assert refusal(picture("L"), 2).reason == "channels"
    assert refusal(npy(TILE), 3).reason == "not-an-image"
    assert images.decode(picture("L"), 64).shape == (48, 48, 3)  # as ever


# ---- storing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_shards_store_bands_without_loss(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(channels)
    stored = [rng.integers(0, 256, (16, 16, channels), dtype=np.uint8) for _ in range(5)]
    samples = []
    for i, pixels in enumerate(stored):
        data, ext = shard.encode(pixels, lossy=True)
        assert ext == "npy"
        assert (np.load(io.BytesIO(data), allow_pickle=False) == pixels).all()
        assert bands.pack(bands.unpack(data)) == data
        samples.append(Sample("train", f"{i:064x}", ext, data, "x", "g", "s"))
    shards.write(tmp_path, samples, 2**15, 16, channels)
    assert read_json(tmp_path / "index.json")["channels"] == channels
    reader = ShardReader(tmp_path, "train", 16)
    assert reader.channels == channels
    found = reader.take(np.arange(5)).numpy()
    assert found.shape == (5, channels, 16, 16)
    assert (found == np.stack(stored).transpose(0, 3, 1, 2)).all()
    assert (reader.take(np.arange(5)).numpy() == found).all()  # from the cache
    colours = ShardReader(tmp_path, "train", 16, rgb=True).take(np.arange(5)).numpy()
    first = [0, 1, 2] if channels >= 3 else [0, 0, 0]
    assert (colours == found[:, first]).all()


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_the_webdataset_library_reads_bands(tmp_path: Path) -> None:
    import webdataset

    sample = Sample("train", "a" * 64, "npy", bands.pack(ARRAY), "x", "g", "s")
    shards.write(tmp_path, [sample], 2**20, 48, 5)
    tars = [str(tmp_path / "train-000000.tar")]
    (item,) = webdataset.WebDataset(tars, shardshuffle=False).decode()
    assert (item["npy"] == ARRAY).all()


def test_an_array_beside_an_image_is_no_image(tmp_path: Path) -> None:
    members = {"a.jpg": picture("RGB", "JPEG"), "a.npy": WHOLE, "b.npy": WHOLE, "b.txt": b"x"}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = list(sources.listing("x.tar", tmp_path))
    assert [(i.ref, i.label) for i in found] == [("x.tar::a.jpg", None), ("x.tar::b.npy", "x")]


def test_canvas_keeps_bands_apart() -> None:
    out = decoding.canvas(ARRAY[:24], 24)  # (24, 48, 5) -> (5, 24, 24)
    assert out.shape == (5, 24, 24)
    assert (out[:, :6] == 255).all()
    assert (out[:, 18:] == 255).all()
    for c in range(5):
        alone = decoding.canvas(ARRAY[:24, :, c : c + 1], 24)
        assert (out[c] == alone[0]).all()


def test_a_damaged_array_in_a_shard_is_named(tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    data[8:10] = b"\xff\xff"
    sample = Sample("train", "a" * 64, "npy", bytes(data), "x", "g", "s")
    shards.write(tmp_path, [sample], 2**20, 48, 5)
    with pytest.raises(HeadwaterError, match=r"train-000000\.tar:aaa.*cannot be read"):
        ShardReader(tmp_path, "train", 16).take(np.arange(1))


# ---- augmenting and encoding -------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_augmentation_leaves_channels_apart_and_makes_no_colours(channels: int) -> None:
    view = View(24, (0.3, 1), jitter=(0.4, 0.4, 0.4, 0.2), jitter_p=1, grey=1, blur=1, solarise=0.5)
    batch = torch.zeros(4, channels, 32, 32, dtype=torch.uint8)
    batch[:, 0] = torch.randint(100, 200, (4, 32, 32), dtype=torch.uint8)
    augment = Augmenter([view], (0.0,) * channels, (1.0,) * channels)
    (out,) = augment(batch, torch.Generator().manual_seed(0))
    assert out.shape == (4, channels, 24, 24)
    rest = out[:, 1:]
    flat = rest.amax((2, 3)) - rest.amin((2, 3))  # nothing of channel 0 got into the others
    assert (flat < 1e-6).all()
    assert out[:, 0].std() > 0


@pytest.mark.parametrize("channels", [1, 5])
def test_embedding_takes_any_channels(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    samples = [
        Sample("train", f"{i:064x}", "npy", bands.pack(pixels), "x", "g", "s")
        for i, pixels in enumerate(rng.integers(0, 256, (6, 32, 32, channels), dtype=np.uint8))
    ]
    shards.write(tmp_path, samples, 2**20, 32, channels)
    reader = ShardReader(tmp_path, None, 32)
    encoder = models.create("resnet10t", {"in_chans": channels})
    colour = models.normalisation(channels)
    assert embed.compute(encoder, reader, *colour).shape == (6, 512)
    assert embed.pixels(reader, 8).shape == (6, channels * 64)
    with pytest.raises(HeadwaterError, match=f"images of {channels} channels"):
        embed.compute(models.create("resnet10t"), reader, *models.normalisation(3))


# ---- the stages, from files to features --------------------------------------------------------


def config(root: Path, **changes: Any) -> Config:
    base = {
        "data.channels": 5,
        "pretrain.epochs": 1,
        "pretrain.backbone_args.in_chans": 5,
        "seed_encoder.image_size": 32,
    }
    return load(root / "params.yaml", base | changes)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project of five-band arrays, and a few files that are none, up to the shards."""
    paths = Paths(tmp_path_factory.mktemp("five"))
    (paths.root / "params.yaml").write_text(TINY)
    for i, (name, tile) in enumerate(photo_tiles()[::2]):
        file = paths.root / "images" / name / f"{i:03d}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, five(tile))
    np.save(paths.root / "images/flower/four.npy", ARRAY[..., :4])
    np.save(paths.root / "images/flower/deep.npy", ARRAY.astype(np.uint16))
    Image.fromarray(TILE).save(paths.root / "images/flower/rgb.png")
    cfg = config(paths.root)
    for stage in (ingest, validate, seed_embed, curate, shard):
        stage.run(cfg, paths)
    return paths


def test_other_channels_are_counted_rejects(chain: Paths) -> None:
    listed = pd.read_parquet(chain.manifest / "rejects.parquet").set_index("path")
    assert listed["reason"].to_dict() == {
        "images/flower/deep.npy": "16-bit",
        "images/flower/four.npy": "channels",
        "images/flower/rgb.png": "channels",
    }
    frame = pd.read_parquet(chain.manifest / "manifest.parquet")
    assert set(frame["mode"]) == {"5 bands"}
    assert set(frame["format"]) == {"NPY"}
    assert len(frame) == len(photo_tiles()[::2])


def test_what_is_known_of_files_depends_on_the_channels(chain: Paths, tmp_path: Path) -> None:
    """The cache of a run with other channels must not let its files through."""
    plain = Config.model_validate({"data": {"sources": ["images"], "channels": 4}})
    files = [p.name for p in chain.runs.glob("ingest-cache*")]
    assert files == ["ingest-cache-5.parquet"]
    assert ingest.cache(plain, chain).name == "ingest-cache-4.parquet"
    assert ingest.cache(Config(), chain).name == "ingest-cache.parquet"


def test_curation_sees_the_first_three_bands(chain: Paths) -> None:
    frame = pd.read_parquet(chain.manifest / "manifest.parquet")
    tile = np.load(chain.root / frame["path"][0])[..., :3]
    assert frame["phash"][0] == str(imagehash.phash(Image.fromarray(tile)))
    square = seed_embed.square(frame["path"][0], chain.root, 48, 5)
    assert (square == tile.transpose(2, 0, 1)).all()
    assert len(pd.read_parquet(chain.validation / "issues.parquet")) == len(frame)


def test_stored_arrays_are_the_originals(chain: Paths) -> None:
    about = read_json(chain.shards / "index.json")
    assert about["channels"] == 5
    index = pd.read_parquet(chain.shards / "index.parquet")
    assert set(index["ext"]) == {"npy"}
    row = index.iloc[0]
    data = (chain.shards / row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
    frame = pd.read_parquet(chain.manifest / "manifest.parquet").set_index("sha256")
    original = np.load(chain.root / frame.loc[row["key"], "path"])
    assert (bands.unpack(data) == bands.resize(original, (32, 32))).all()  # shard.max_side


def test_shards_are_a_source_again(chain: Paths) -> None:
    tar = sorted(chain.shards.glob("train-*.tar"))[0].relative_to(chain.root)
    cfg = config(chain.root, **{"data.sources": [str(tar)]})
    elsewhere = Paths(chain.root)
    elsewhere.manifest = chain.root / "again"
    counts = ingest.run(cfg, elsewhere)
    assert counts["rejected"] == 0
    assert counts["kept"] > 5
    assert counts["unlabelled"] == 0


def test_an_encoder_for_other_channels_is_refused_before_training(
    chain: Paths, tmp_path: Path
) -> None:
    cfg = config(chain.root, **{"pretrain.backbone_args.in_chans": 3})
    with pytest.raises(HeadwaterError, match=r"set pretrain\.backbone_args: \{in_chans: 5\}"):
        job.build(cfg, chain.shards, tmp_path)


def test_five_bands_train_and_embed(chain: Paths) -> None:
    cfg = config(chain.root)
    pretrain.run(cfg, chain)
    meta = read_json(chain.pretrain / "encoder.json")
    assert meta["args"]["in_chans"] == 5
    assert (meta["mean"], meta["std"]) == ([0.5] * 5, [0.25] * 5)
    counts = embed_stage.run(cfg, chain)
    features = np.load(chain.embeddings / "features.npy")
    assert features.shape == (counts["images"], 48)
    assert np.isfinite(features).all()
    assert np.load(chain.embeddings / "pixels.npy").shape[1] == 5 * 16 * 16


def test_thumbnails_and_serving_know_bands(chain: Paths) -> None:
    from ssl_core.report import _images
    from ssl_core.stages import predict

    thumb = _images.from_bytes(WHOLE, 48)
    assert thumb is not None
    assert (thumb == TILE).all()
    assert _images.from_bytes(WHOLE[:-1]) is None
    assert _images.from_bytes(npy(ARRAY.astype(np.uint16))) is None
    path = sorted((chain.root / "images/temple").glob("*.npy"))[0]
    ref = path.relative_to(chain.root).as_posix()
    seen = predict.read(ref, chain.root, 10**6, 48, 48, 5)
    assert seen.pixels is not None
    assert (seen.pixels == np.load(path).transpose(2, 0, 1)).all()
    assert predict.read(ref, chain.root, 10**6, 48, 48).reason == "not-an-image"
