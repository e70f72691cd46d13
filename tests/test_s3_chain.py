"""The chain against a real S3 server: equal products from a folder and from a bucket.

In the second project the images lie in a bucket, and the shards are moved to it (``shard.place``)
and streamed back by training, embedding and evaluation.
"""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, fill
from s3server import BUCKET, Server

from ssl_core import s3, store
from ssl_core import upload as upload_module
from ssl_core.artifacts import LINEAGE, read_json, sha256_file
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError
from ssl_core.report._images import Shards

STAGES = ["ingest", "validate", "seed_embed", "curate", "shard", "pretrain", "embed", "evaluate"]
SOURCE = f"s3://{BUCKET}/set/images"
# What differs, and why. Everything else has equal bytes.
NAMES = {  # hold the images' addresses
    "manifest/manifest.parquet",
    "validation/issues.parquet",
    "curated/curated.parquet",
}
MOVED = {"shards/place.json"}  # stands in the product for its tars


def tree(folder: Path) -> dict[str, str]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): sha256_file(f) for f in files}


def upload(server: Server, folder: Path, prefix: str = "set/images") -> int:
    client, files = server.client, [f for f in folder.rglob("*") if f.is_file()]
    for file in files:
        client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return len(files)


def chain(root: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Paths:
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(text)
    monkeypatch.chdir(root)
    cfg, paths = load(root / "params.yaml"), Paths()
    for stage in STAGES:
        importlib.import_module(f"ssl_core.stages.{stage}").run(cfg, paths)
    return Paths(root)


def requests(*attempts: int) -> Counter[str]:
    """Counts of the operations of the clients of so many attempts, from now on."""
    seen: Counter[str] = Counter()

    def count(model: Any, **_: Any) -> None:
        seen[model.name] += 1

    for number in attempts:
        s3.client(number).meta.events.register("before-call.s3", count)
    return seen


def test_the_bucket_gives_the_folders_hashes(
    s3_lake: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    fill(here)
    upload(s3_lake, here / "images")
    place = f"{SOURCE.rpartition('/')[0]}/shards"
    far = TINY.replace("[images]", f"[{SOURCE}]").replace("shard:", f"shard:\n  place: {place}")
    local = tree(chain(here, TINY, monkeypatch).products)
    paths = chain(there, far, monkeypatch)
    remote = tree(paths.products)

    tars = {n for n in local if n.endswith(".tar")}
    assert len(tars) > 4
    differ = {n for n in local.keys() & remote.keys() if local[n] != remote[n]}
    assert {n for n in differ if not n.endswith(LINEAGE)} == NAMES
    assert local.keys() - remote.keys() == tars
    assert remote.keys() - local.keys() == MOVED
    for name in ("shards/index.json", "pretrain/encoder.safetensors", "embeddings/features.npy"):
        assert name in local.keys() & remote.keys() - differ

    # The tars in the bucket are the folder's.
    url = read_json(paths.shards / store.PLACE)["url"]
    client, (bucket, prefix) = s3_lake.client, s3.split(url)
    for name in tars:
        client.download_file(bucket, f"{prefix}/{Path(name).name}", str(tmp_path / "got"))
        assert sha256_file(tmp_path / "got") == local[name]
    key = pd.read_parquet(paths.shards / store.INDEX)["key"].iloc[0]
    assert (Shards(paths.shards).get(key) == Shards(here / "data/products/shards").get(key)).all()


def test_a_second_ingest_downloads_new_objects_alone(
    s3_lake: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_core.sources import s3 as source
    from ssl_core.stages import ingest

    count = upload(s3_lake, project / "images", "grows")
    cfg, paths = Config.model_validate({"data": {"sources": [f"s3://{BUCKET}/grows"]}}), Paths()
    monkeypatch.setattr(source, "PAGE", 40)
    seen = requests(1, 4)
    assert ingest.run(cfg, paths)["kept"] == count
    pages = -(-count // 40)
    assert seen == {"GetObject": count, "ListObjectsV2": pages}

    first = tree(paths.manifest)
    seen.clear()
    assert ingest.run(cfg, paths)["reused"] == count
    assert seen == {"ListObjectsV2": pages}
    assert tree(paths.manifest) == first

    client, seen_there = s3_lake.client, sorted((project / "images").rglob("*.png"))
    client.upload_file(str(seen_there[0]), BUCKET, "grows/new/again.png")  # new
    client.upload_file(str(seen_there[1]), BUCKET, f"grows/flower/{seen_there[0].name}")  # changed
    client.delete_object(Bucket=BUCKET, Key=f"grows/flower/{seen_there[2].name}")
    client.upload_file(str(seen_there[3]), BUCKET, f"grows/flower/{seen_there[3].name}")  # the same
    seen.clear()
    assert ingest.run(cfg, paths)["kept"] == count
    assert seen["GetObject"] == 2
    changed = pd.read_parquet(paths.manifest / "manifest.parquet").set_index("path")["sha256"]
    assert changed[f"s3://{BUCKET}/grows/flower/{seen_there[0].name}"] == sha256_file(seen_there[1])


def shards_in(folder: Path) -> Path:
    from planted_shards import MAX_BYTES, samples

    from ssl_core import shards

    folder.mkdir()
    shards.write(folder, samples(), MAX_BYTES // 2, 50)
    return folder


def test_an_upload_that_was_cut_off_goes_on(
    s3_lake: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards_in(tmp_path / "made")
    names = sorted(f.name for f in folder.iterdir())
    place = f"s3://{BUCKET}/moved"
    put, done = upload_module._put, []

    def dies(client: Any, bucket: str, key: str, file: Path) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        put(client, bucket, key, file)
        done.append(file.name)

    monkeypatch.setattr(upload_module, "_put", dies)
    with pytest.raises(KeyboardInterrupt):
        upload_module.move(folder, place)
    assert sorted(f.name for f in folder.iterdir()) == names  # nothing was lost here
    url = f"{place}/{sha256_file(folder / store.ABOUT)[:16]}"
    with pytest.raises(HeadwaterError, match="holds no shards"):  # nor is a part taken for whole
        store.at(url)

    first = [*done]
    monkeypatch.setattr(upload_module, "_put", put)
    seen = requests(7)
    assert upload_module.move(folder, place) == url
    assert seen["PutObject"] == len(names) - len(first)
    assert sorted(f.name for f in folder.iterdir()) == [store.ABOUT, store.INDEX, store.PLACE]
    assert store.verify(folder) == len(names) - 2


def test_large_shards_go_up_in_parts(s3_lake: Server, tmp_path: Path) -> None:
    large = tmp_path / "large.tar"
    large.write_bytes(np.random.default_rng(0).bytes(20 * 2**20))
    seen = requests(7)
    upload_module._send(f"s3://{BUCKET}/parts", [large])
    assert seen["UploadPart"] == 3  # of 8 MiB
    assert seen["CompleteMultipartUpload"] == 1
    client = s3_lake.client
    client.download_file(BUCKET, "parts/large.tar", str(tmp_path / "back"))
    assert sha256_file(tmp_path / "back") == sha256_file(large)


def test_a_place_that_cannot_be_written_is_said(s3_lake: Server, tmp_path: Path) -> None:
    folder = shards_in(tmp_path / "made")
    before = tree(folder)
    with pytest.raises(HeadwaterError, match="its bucket does not exist"):
        upload_module.move(folder, "s3://nowhere/shards")
    assert tree(folder) == before
    for bad in ("/local/folder", "s3://", "gs://bucket/x"):
        with pytest.raises(ValueError, match="String should match pattern"):
            Config.model_validate({"shard": {"place": bad}})
