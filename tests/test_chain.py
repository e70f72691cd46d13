"""One chain, three doors: the command, DVC and Dagster make equal bytes and agree on what is fresh.

Also: an old commit plus ``dvc checkout`` brings back the old checkpoint, byte for byte.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, fill_tracked, headwater

from ssl_core.__main__ import CHAIN
from ssl_core.artifacts import sha256_file

DAGSTER = """
import dagster as dg, sys
from pipelines import home
from pipelines.definitions import defs
if __name__ == "__main__":
    home.prepare()
    with dg.DagsterInstance.get() as instance:
        job = defs.get_job_def("chain")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        logs = instance.all_logs(result.run_id)
        print("\\n".join(e.user_message for e in logs))
        for event in result.get_asset_materialization_events():
            mat = event.step_materialization_data.materialization
            print("MATERIALIZED", mat.asset_key.to_user_string(), len(mat.metadata))
    sys.exit(0 if result.success else 1)
"""


def shell(*command: str, cwd: Path, check: bool = True, **env: str) -> str:
    """Run a program of this environment and return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | env,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def dagster(place: Path, check: bool = True) -> str:
    script = place.parent / "chain.py"
    script.write_text(DAGSTER)
    return shell(
        sys.executable,
        str(script),
        cwd=ROOT,
        check=check,
        HEADWATER_ROOT=str(place),
        DAGSTER_HOME=str(place / ".dagster_home"),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project under git and DVC with real photographs in data/raw."""
    root = tmp_path_factory.mktemp("chain") / "project"
    fill_tracked(root)
    commit(root, "start")
    return root


def tree(folder: Path) -> dict[str, str]:
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): sha256_file(f) for f in files}


def commit(root: Path, message: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    shell("git", "add", "-A", cwd=root)
    shell("git", *who, "commit", "-qm", message, cwd=root)


def test_doors_agree_and_history_comes_back(place: Path, tmp_path: Path) -> None:
    log = dagster(place)
    for stage in (*CHAIN, "report"):
        assert f"MATERIALIZED {stage}" in log
    assert "pretrain: " in log  # progress came through the pipe
    assert "up to date" in shell("dvc", "status", cwd=place)
    first = tree(place / "data/products")
    weights = place / "data/products/pretrain/encoder.safetensors"
    old = sha256_file(weights)

    # The command by itself, elsewhere: equal bytes.
    by_hand = tmp_path / "hand"
    shutil.copytree(place / "data/raw", by_hand / "data/raw")
    (by_hand / "data/collected").mkdir()
    shutil.copy(place / "params.yaml", by_hand)
    shutil.copy(place / "data/corrections.csv", by_hand / "data")
    for stage in CHAIN:
        headwater(stage.replace("_", "-"), cwd=by_hand)
    assert tree(by_hand / "data/products") == first

    # DVC has nothing left to do after Dagster.
    commit(place, "first")
    again = shell("dvc", "repro", cwd=place)
    assert "Running stage" not in again
    assert again.count("didn't change, skipping") == len(CHAIN)
    shell("dvc", "push", "-q", cwd=place)

    # Change, reproduce with DVC; Dagster then finds everything fresh.
    params = place / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 4", "epochs: 2"))
    changed = shell("dvc", "repro", cwd=place)
    assert "Running stage 'pretrain'" in changed
    assert "Running stage 'shard'" not in changed
    assert sha256_file(weights) != old
    before = (place / "dvc.lock").read_bytes()
    assert "pretrain: " not in dagster(place)  # no stage process ran
    assert (place / "dvc.lock").read_bytes() == before

    # An old commit, an empty cache and the remote: the old checkpoint.
    commit(place, "second")
    shell("git", "checkout", "-q", "HEAD~1", cwd=place)
    shutil.rmtree(place / ".dvc/cache")
    shell("dvc", "pull", "-q", "--force", cwd=place)  # what lies there is in no cache now
    assert sha256_file(weights) == old
    shell("git", "checkout", "-q", "-", cwd=place)


def test_invalid_data_stops_the_chain(place: Path) -> None:
    shell("git", "checkout", "-q", "-f", cwd=place)
    params = place / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("min_images: 40", "min_images: 4000"))
    log = dagster(place, check=False)
    params.write_text(text)
    assert "MATERIALIZED validate" in log
    assert "MATERIALIZED seed_embed" not in log
