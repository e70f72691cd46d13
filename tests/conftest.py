"""A tiny project: real images in a folder, small enough for every stage in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3server
from PIL import Image

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).parent.parent
TINY = """\
seed: 0
data:
  sources: [images]
validate:
  min_images: 40
curate:
  clusters: 4
shard:
  max_bytes: 65536
  max_side: 32
pretrain:
  method: simclr
  backbone_args: {img_size: 32, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 2}
  image_size: 32
  crop_size: 32
  epochs: 4
  batch_size: 16
  checkpoint_steps: 2
  precision: fp32
embed: {}
evaluate:
  bootstrap: 50
promote:
  bootstrap: 200
deploy:
  permutations: 99
"""


def photo_tiles() -> list[tuple[str, np.ndarray]]:
    """48-px tiles of scikit-learn's two photographs: (class, HWC uint8)."""
    from sklearn.datasets import load_sample_images

    found = []
    for name, image in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for y in range(0, image.shape[0] - 48, 48):
            for x in range(0, image.shape[1] - 48, 48):
                found.append((name, image[y : y + 48, x : x + 48]))
    return found


def fill(folder: Path) -> None:
    """``images/<class>/*.png`` and params.yaml."""
    for i, (name, tile) in enumerate(photo_tiles()[::2]):
        path = folder / "images" / name / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    (folder / "params.yaml").write_text(TINY)


def fill_tracked(root: Path) -> None:
    """The same as a new git repository with ``dvc.yaml``, images in ``data/raw``; no commit yet."""
    fill(root)
    (root / "data/collected").mkdir(parents=True)
    (root / "data/collected/.gitkeep").touch()
    (root / "images").rename(root / "data/raw")
    text = TINY.replace("[images]", "[data/raw, data/collected]")
    text += "seed_encoder: {}\nsynthesise: {}\n"  # DVC wants every section
    (root / "params.yaml").write_text(text)
    files = ("dvc.yaml", ".dvcignore", "data/.gitignore", ".dvc/config", ".dvc/.gitignore")
    for name in (*files, "data/corrections.csv", "data/forgotten.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / ".gitignore").write_text(".dvc-remote/\n.dagster_home/\nruns/\nreports/\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder; it is the cwd."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def headwater(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "ssl_core", *args]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3server.Server]:
    """A real S3 server with an empty bucket, one per test process."""
    with s3server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_lake(
    s3_server: s3server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[s3server.Server]:
    """That server as the environment's S3, with a cache of the test's own."""
    from ssl_core import s3

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "s3-cache"))
    s3._client.cache_clear()
    yield s3_server
    s3._client.cache_clear()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of a real HTTP server (moto) that the environment points to; s3://lake."""
    from moto.server import ThreadedMotoServer

    from ssl_core import s3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = f"http://{host}:{port}"
    for name, value in (
        ("ENDPOINT_URL", place),
        ("ACCESS_KEY_ID", "t"),
        ("SECRET_ACCESS_KEY", "t"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    # moto keeps what earlier servers of this process were given.
    with urllib.request.urlopen(f"{place}/moto-api/reset", data=b""):
        pass
    s3._client.cache_clear()
    client = s3.client()
    client.create_bucket(Bucket="lake")
    yield client
    client.close()
    s3._client.cache_clear()
    server.stop()
