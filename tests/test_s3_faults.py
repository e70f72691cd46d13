"""Faults between us and a real S3 server: the whole object, or an error that says what to do.

``test_store.py`` has the reader's own rules against a fake; here are ingest, upload and the reader
over a network that breaks, with the server's real ranges, ETags and multipart uploads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3proxy
import torch
from planted_shards import MAX_BYTES, SIDE, samples
from s3proxy import Proxy
from s3server import BUCKET, Server

from ssl_core import images, s3, shards, store, upload
from ssl_core.artifacts import read_json, sha256_file
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.reader import ShardReader
from ssl_core.stages import ingest

TRANSIENT = ("503", "500", "cut", "slow", "stall")


@pytest.fixture
def proxy(
    s3_lake: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Proxy]:
    """The environment's S3 is now behind a proxy; what must be waited for is short."""
    stalls = "stall" in request.node.name
    monkeypatch.setattr(s3, "PAUSE", 0.01)
    monkeypatch.setattr(s3, "READ_TIMEOUT", 1.0 if stalls else 20.0)
    with s3proxy.running(s3_lake.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        s3._client.cache_clear()
        yield made
        for attempts in (1, 4, s3.ATTEMPTS):
            s3.client(attempts).close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made")
    shards.write(path, samples(), MAX_BYTES // 2, 50)
    return path


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANSIENT)
def test_an_object_is_read_whole_through_faults_that_pass(
    proxy: Proxy, s3_lake: Server, kind: str
) -> None:
    body = np.random.default_rng(0).bytes(300_000)
    ref = s3_lake.put(f"faults/{kind}", body)
    proxy.fault = lambda method, key, number: kind if number <= 2 else ""
    assert images.read_bytes(ref, Path()) == body
    starts = [r for method, _, r in proxy.asked if method == "GET"]
    expected = {
        "slow": [""],
        "503": [""] * 3,
        "500": [""] * 3,
        "cut": ["", "bytes=150000-", "bytes=225000-"],  # went on where it broke off
        "stall": ["", f"bytes={2 * s3.CHUNK}-", f"bytes={3 * s3.CHUNK}-"],  # what a chunk filled
    }
    assert starts == expected[kind]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("503", r"S3 refused \(SlowDown\)"),
        ("cut", "S3 does not answer"),
        ("expired", r"credentials have expired .* renew them"),
        ("denied", r"S3 refused \(AccessDenied\).* rights"),
    ],
)
def test_a_fault_that_stays_is_an_error_with_the_address(
    proxy: Proxy, s3_lake: Server, kind: str, rule: str
) -> None:
    ref = s3_lake.put("faults/stays", b"x" * 1000)
    proxy.fault = lambda method, key, number: kind
    with pytest.raises(HeadwaterError, match=f"{ref}: .*{rule}"):
        images.read_bytes(ref, Path())
    if kind in ("expired", "denied"):
        assert len(proxy.asked) == 1  # to ask again would not help


def test_two_versions_are_never_joined(proxy: Proxy, s3_lake: Server) -> None:
    ref = s3_lake.put("faults/changes", b"a" * 100_000)

    def replaced(method: str, key: str, number: int) -> str:
        if number == 2:
            s3_lake.put("faults/changes", b"b" * 100_000)
        return "cut" if number == 1 else ""

    proxy.fault = replaced
    with pytest.raises(HeadwaterError, match=f"{ref}: changed while it was read"):
        images.read_bytes(ref, Path())
    assert images.read_bytes(ref, Path()) == b"b" * 100_000


def test_credentials_that_expire_during_ingest_cost_nothing_finished(
    proxy: Proxy, s3_lake: Server, project: Path
) -> None:
    files = sorted((project / "images").rglob("*.png"))[:30]
    for file in files:
        s3_lake.put(f"expire/cat/{file.name}", file.read_bytes())
    cfg, paths = Config.model_validate({"data": {"sources": [f"s3://{BUCKET}/expire"]}}), Paths()
    assert ingest.run(cfg, paths)["kept"] == 30
    before = sha256_file(paths.manifest / "manifest.parquet")

    s3_lake.put("expire/cat/new.png", files[0].read_bytes())
    proxy.fault = lambda method, key, number: "expired" if key.endswith(".png") else ""
    with pytest.raises(HeadwaterError, match=r"new\.png: the S3 credentials have expired"):
        ingest.run(cfg, paths)
    assert sha256_file(paths.manifest / "manifest.parquet") == before
    proxy.fault = lambda method, key, number: "503" if number == 1 else ""
    assert ingest.run(cfg, paths)["reused"] == 30


@pytest.mark.parametrize("kind", TRANSIENT)
def test_batches_are_the_folders_through_faults_that_pass(
    proxy: Proxy, s3_lake: Server, made: Path, kind: str
) -> None:
    for file in made.iterdir():
        s3_lake.put(f"reader/{file.name}", file.read_bytes())
    proxy.fault = lambda method, key, number: kind if number == 1 else ""
    here = ShardReader(made, "train", SIDE, seed=5).batches(16, steps=5)
    there = ShardReader(f"s3://{BUCKET}/reader", "train", SIDE, seed=5, threads=3)
    for (rows, pixels), (rows2, pixels2) in zip(here, there.batches(16, steps=5), strict=True):
        assert (rows == rows2).all()
        assert torch.equal(pixels, pixels2)


# ---- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "500", "lost", "torn"])
def test_shards_arrive_whole_through_faults_that_pass(
    proxy: Proxy, s3_lake: Server, made: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "copy"
    shards.write(folder_of(folder), samples(), MAX_BYTES // 2, 50)
    some = ("test-000000.tar", "train-000001.tar", store.ABOUT)  # the client waits a second each
    proxy.fault = lambda _, key, number: kind if key.endswith(some) and number == 1 else ""
    url = upload.move(folder, f"s3://{BUCKET}/{kind}")
    client, (bucket, prefix) = s3_lake.client, s3.split(url)
    for name, known in read_json(made / store.ABOUT)["shards"].items():
        body = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read()
        assert body == (made / name).read_bytes()
        assert len(body) == known["bytes"]


def folder_of(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["503", "torn", "lost"])
def test_a_multipart_upload_survives_too(
    proxy: Proxy, s3_lake: Server, tmp_path: Path, kind: str
) -> None:
    large = tmp_path / "large.tar"
    large.write_bytes(np.random.default_rng(1).bytes(17 * 2**20))
    proxy.fault = lambda method, key, number: kind if method == "PUT" and number == 2 else ""
    upload._send(f"s3://{BUCKET}/parts-{kind}", [large])
    assert sum(method == "PUT" for method, _, _ in proxy.asked) == 4  # 3 parts, one of them twice
    client = s3_lake.client
    client.download_file(BUCKET, f"parts-{kind}/large.tar", str(tmp_path / "back"))
    assert sha256_file(tmp_path / "back") == sha256_file(large)


@pytest.mark.parametrize("kind", ["503", "expired", "denied"])
def test_an_upload_that_fails_leaves_the_shards_here(
    proxy: Proxy, made: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    folder = folder_of(tmp_path / "copy")
    shards.write(folder, samples(), MAX_BYTES // 2, 50)
    late = sorted(f.name for f in folder.glob("*.tar"))[5]
    proxy.fault = lambda method, key, number: kind if key.endswith(late) else ""
    with pytest.raises(HeadwaterError, match=late):
        upload.move(folder, f"s3://{BUCKET}/fails-{kind}")
    assert {f.name for f in folder.iterdir()} == {f.name for f in made.iterdir()}
    with pytest.raises(HeadwaterError, match="holds no shards"):
        store.at(f"s3://{BUCKET}/fails-{kind}/{sha256_file(folder / store.ABOUT)[:16]}")
