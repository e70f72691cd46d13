"""The job ``backup`` against a real S3 server: what was pushed comes back, byte for byte."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from s3server import BUCKET, Server

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
from dvc.repo import Repo
from assets._dvc import ROOT
os.chdir(ROOT)
Repo.init(no_scm=True).close()
shutil.copy(sys.argv[1], ".dvc/config")
with Repo() as repo:
    repo.add("products")
from pipelines.definitions import defs

def push():
    result = defs.resolve_job_def("backup").execute_in_process(raise_on_error=False)
    if result.success:
        return result.output_for_node("push_products")
    return result.failure_data_for_node("push_products").user_failure_data.description

found = [push(), push()]
Path("products/c.txt").write_text("of a later day")
with Repo() as repo:
    repo.add("products")
found.append(push())
shutil.rmtree(".dvc/cache")
shutil.rmtree("products")
with Repo() as repo:
    repo.pull()
files = {p.name: p.read_text() for p in Path("products").iterdir()}
os.environ["HEADWATER_REMOTE"] = "elsewhere"
found.append(push())
os.environ["HEADWATER_REMOTE"] = "nobucket"
found.append(push())
Path(sys.argv[2]).write_text(json.dumps([found, files]))
"""


def remotes(path: Path, endpoint: str) -> None:
    config = configparser.ConfigParser()
    config["core"] = {
        "remote": "s3",
        "analytics": "false",
        "no_scm": "true",
        "check_update": "false",
    }
    for name, bucket in (("s3", BUCKET), ("nobucket", "not-a-bucket")):
        url = {"url": f"s3://{bucket}/backup", "endpointurl": endpoint}
        config[f"'remote \"{name}\"'"] = url
    with path.open("w") as stream:
        config.write(stream)


@pytest.mark.skipif(importlib.util.find_spec("dvc_s3") is None, reason="extra s3 not installed")
def test_what_is_backed_up_comes_back(s3_lake: Server, tmp_path: Path) -> None:
    place, out = tmp_path / "project", tmp_path / "out.json"
    (place / "products").mkdir(parents=True)
    texts = {"a.txt": "one", "b.txt": "two"}
    for name, text in texts.items():
        (place / "products" / name).write_text(text)
    remotes(tmp_path / "config", s3_lake.endpoint)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "config"), str(out)],
        cwd=ROOT,
        env=os.environ | {"HEADWATER_ROOT": str(place), "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Any]
    found, files = json.loads(out.read_text())
    remote = f"s3://{BUCKET}/backup"
    assert found[0] == {"pushed": 3, "remote": remote}  # two files and the list of them
    assert found[1] == {"pushed": 0, "remote": remote}
    assert found[2] == {"pushed": 2, "remote": remote}  # the new file and the new list
    assert files == texts | {"c.txt": "of a later day"}
    assert "no remote 'elsewhere' (it has: s3, nobucket)" in found[3]
    assert "not-a-bucket" in found[4]
    listed = s3_lake.client.list_objects_v2(Bucket=BUCKET, Prefix="backup/")["Contents"]
    assert len(listed) == 5
