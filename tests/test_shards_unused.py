"""``headwater clean --shards`` against a real S3 server: what is referred to stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from s3server import BUCKET, Server
from typer.testing import CliRunner

from ssl_core import store, upload
from ssl_core.__main__ import app
from ssl_core.artifacts import sha256_file, write_json
from ssl_core.commands import _buckets, clean
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError

GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t")


def ask(*args: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["clean", *args, "--json"], catch_exceptions=False)
    return dict(json.loads(done.stdout))


def make(root: Path, place: str, count: int) -> str:
    """Shards of so many images, moved to the bucket; their address."""
    shutil.rmtree(root / "data/products/shards", ignore_errors=True)
    paths = tiny.write(root, count)
    return upload.move(paths.shards, place)


def cache(root: Path, folder: Path) -> str:
    """``folder`` in DVC's cache, as DVC lays it out (tests/test_commands_care.py asks DVC)."""
    listed = []
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        listed.append({"md5": digest, "relpath": file.name})
        put(root, digest, file.read_bytes())
    data = json.dumps(listed).encode()
    name = hashlib.md5(data).hexdigest() + ".dir"
    put(root, name, data)
    return name


def put(root: Path, name: str, data: bytes) -> None:
    path = root / ".dvc/cache/files/md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def commit(root: Path, md5: str) -> None:
    outs = [{"path": "data/products/shards", "md5": md5}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"shard": {"outs": outs}}}))
    subprocess.run([*GIT, "add", "dvc.lock"], check=True, cwd=root)
    subprocess.run([*GIT, "commit", "-qm", md5], check=True, cwd=root)


def keys(server: Server, prefix: str) -> list[str]:
    found = server.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    return [o["Key"] for o in found]


@pytest.fixture
def project(tmp_path: Path, s3_lake: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Five addresses: of the product, a branch, a model, nobody, and one that was cut off."""
    place = f"s3://{BUCKET}/{tmp_path.name}"
    monkeypatch.chdir(tmp_path)
    subprocess.run([*GIT, "init", "-q", "-b", "main"], check=True)
    (tmp_path / "params.yaml").write_text(f"shard: {{place: '{place}/'}}\n")
    urls = {"nobody": make(tmp_path, place, 5)}
    shards = Paths(tmp_path).shards
    urls["model"] = make(tmp_path, place, 6)
    card = {"id": "0" * 12, "index": sha256_file(shards / "index.json"), "lineage": {}}
    model = tmp_path / "data/registry/models" / ("0" * 12)
    model.mkdir(parents=True)
    write_json(model / "card.json", card)
    urls["branch"] = make(tmp_path, place, 7)
    subprocess.run([*GIT, "switch", "-q", "-c", "side"], check=True)
    commit(tmp_path, cache(tmp_path, shards))
    subprocess.run([*GIT, "switch", "-q", "--orphan", "main2"], check=True)
    urls["product"] = make(tmp_path, place, 8)
    commit(tmp_path, cache(tmp_path, shards))
    urls["cut"] = f"{place}/{'f' * 16}"
    s3_lake.put(f"{tmp_path.name}/{'f' * 16}/train-000000.tar", b"half")
    s3_lake.put(f"{tmp_path.name}/{'e' * 16}/notes.txt", b"of somebody else")
    s3_lake.put(f"{tmp_path.name}/readme.txt", b"of somebody else")
    return urls


def test_only_what_nothing_refers_to_is_listed_and_deleted(
    project: dict[str, str], s3_lake: Server, tmp_path: Path
) -> None:
    before = keys(s3_lake, tmp_path.name)
    assert not [i for i in ask()["items"] if i["kind"] == "shards"]  # only when asked for
    assert not ask("--shards", "1")["items"]  # too young
    found = ask("--shards", "0")
    assert {i["path"] for i in found["items"]} == {project["nobody"], project["cut"]}
    assert found["bytes"] > 4
    assert keys(s3_lake, tmp_path.name) == before  # a list, no more
    ask("--shards", "0", "--yes")
    gone = tuple(
        url.removeprefix(f"s3://{BUCKET}/") + "/" for url in (project["nobody"], project["cut"])
    )
    assert keys(s3_lake, tmp_path.name) == [k for k in before if not k.startswith(gone)]
    assert store.verify(Paths(tmp_path).shards) > 0
    for name in ("branch", "model"):
        assert store.Bucket(project[name], keep=1).verify() > 0


def test_index_json_goes_first(
    project: dict[str, str], s3_lake: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that is cut off leaves no index of shards that are not there."""
    from ssl_core import s3

    client = s3.client(s3.ATTEMPTS)
    monkeypatch.setattr(client, "delete_objects", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        upload.remove(project["nobody"])
    left = keys(s3_lake, project["nobody"].removeprefix(f"s3://{BUCKET}/"))
    assert left
    assert not any(k.endswith("index.json") for k in left)


def test_an_upload_renews_the_age(project: dict[str, str], s3_lake: Server, tmp_path: Path) -> None:
    """Equal shards made again elsewhere upload nothing else, and must not look old."""
    key = project["product"].removeprefix(f"s3://{BUCKET}/") + "/index.json"
    first = s3_lake.client.head_object(Bucket=BUCKET, Key=key)["LastModified"]
    time.sleep(1.1)  # S3 counts whole seconds
    assert make(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", 8) == project["product"]
    assert s3_lake.client.head_object(Bucket=BUCKET, Key=key)["LastModified"] > first


def test_what_cannot_be_told_stops_all(project: dict[str, str], tmp_path: Path) -> None:
    cfg, paths = Config.model_validate({"shard": {"place": "s3://lake/x"}}), Paths(tmp_path)
    assert len(_buckets.referred(paths)) == 3
    index = next(p for p in (tmp_path / ".dvc/cache").rglob("*.dir"))
    index.rename(index.with_suffix(".gone"))
    with pytest.raises(HeadwaterError, match=r"not in DVC's cache.*dvc fetch --all-commits"):
        clean.unused(cfg, paths, 0)
    index.with_suffix(".gone").rename(index)
    model = tmp_path / "data/registry/models" / ("0" * 12) / "card.json"
    write_json(model, {"id": "0" * 12, "lineage": {"shards": "unknown"}})
    with pytest.raises(HeadwaterError, match="does not say which shards"):
        clean.unused(cfg, paths, 0)
    lineage = sha256_file(paths.shards / "lineage.json")  # an old card, of shards that are known
    write_json(model, {"id": "0" * 12, "lineage": {"shards": lineage}})
    assert len(_buckets.referred(paths)) == 2
    with pytest.raises(HeadwaterError, match=r"shard\.place"):
        clean.unused(Config(), paths, 0)
    (tmp_path / ".git/shallow").write_text("0" * 40 + "\n")
    with pytest.raises(HeadwaterError, match="unshallow"):
        clean.unused(cfg, paths, 0)
