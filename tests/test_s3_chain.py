"""The chain against a real S3 server: equal products from a folder and from a bucket.

In the second project the images lie in a bucket, and the shards are moved to it (``shard.place``)
and streamed back by training, embedding and evaluation.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY, fill
from s3server import BUCKET, Server

from ssl_core import s3, store
from ssl_core.artifacts import LINEAGE, read_json, sha256_file
from ssl_core.config import Config, Paths, load
from ssl_core.report._images import Shards

STAGES = "ingest validate seed_embed curate shard pretrain embed evaluate".split()
SOURCE = f"s3://{BUCKET}/set/images"
# What differs, and why. Everything else has equal bytes.
NAMES = {  # hold the images' addresses
    "manifest/manifest.parquet",
    "validation/report.json",
    "curated/curated.parquet",
}
MOVED = {"shards/place.json"}  # stands in the product for its tars


def tree(folder: Path) -> dict[str, str]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): sha256_file(f) for f in files}


def upload(server: Server, folder: Path, prefix: str = "set/images") -> int:
    client, files = server.client(), [f for f in folder.rglob("*") if f.is_file()]
    for file in files:
        client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")
    client.close()
    return len(files)


def chain(root: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Paths:
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(text)
    monkeypatch.chdir(root)
    cfg, paths = load(root / "params.yaml"), Paths()
    for stage in STAGES:
        importlib.import_module(f"ssl_core.stages.{stage}").run(cfg, paths)
    return Paths(root)


def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of the client's operations from now on."""
    seen: Counter[str] = Counter()

    def count(model: Any, **_: Any) -> None:
        seen[model.name] += 1

    for attempts in (1, 4):
        s3.client(attempts).meta.events.register("before-call.s3", count)
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
    client, (bucket, prefix) = s3_lake.client(), s3.split(url)
    for name in tars:
        client.download_file(bucket, f"{prefix}/{Path(name).name}", str(tmp_path / "got"))
        assert sha256_file(tmp_path / "got") == local[name]
    client.close()
    key = pd.read_parquet(paths.shards / store.INDEX)["key"].iloc[0]
    assert (Shards(paths.shards).get(key) == Shards(here / "data/products/shards").get(key)).all()
