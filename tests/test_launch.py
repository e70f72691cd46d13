"""Training under torchrun, as a user runs it: two machines, a rank that dies, preemption, DVC."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import yaml

from ssl_core import launch
from ssl_core.config import Paths
from ssl_core.errors import HeadwaterError

PRODUCT = ("encoder.safetensors", "log.jsonl")
RANKS = ["-s", "pretrain.processes=2"]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A project with shards; it is the cwd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    cfg = tiny.config(batch_size=4, epochs=8, checkpoint_steps=3)
    Path("params.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json", by_alias=True)))
    return tiny.write(tmp_path)


@pytest.mark.parametrize(("gpus", "fits"), [(0, True), (1, False), (2, True), (4, True)])
def test_no_two_ranks_share_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int, fits: bool) -> None:
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: gpus)
    p = tiny.config(processes=2).pretrain
    if fits:
        launch.require_devices(p)
        return
    with pytest.raises(HeadwaterError, match=r"processes 2.*more than the GPUs.*\(1\)"):
        launch.require_devices(p)


def pretrain(*more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ssl_core", "pretrain", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    """Its output, after it has ended so."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code, out
    return out


def product(paths: Paths) -> dict[str, bytes]:
    return {name: (paths.pretrain / name).read_bytes() for name in PRODUCT}


def after_steps(count: int, act: Callable[[], None], *running: subprocess.Popen[str]) -> None:
    """Wait for so many lines of the log, then act."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(p.poll() is None for p in running):
        logs = [*Path("runs").glob("pretrain/*/log.jsonl")]
        if logs and logs[0].read_bytes().count(b"\n") >= count:
            act()
            return
        time.sleep(0.005)
    pytest.fail("the run ended, or did not begin: " + running[0].communicate()[0])


def workers() -> list[int]:
    """The ranks that train in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(entry / "cwd") == os.getcwd()
        except OSError:  # it has just ended
            continue
        if here and b"ssl_core.launch" in command and b"torch.distributed.run" not in command:
            found.append(int(entry.name))
    return sorted(found)


def test_two_machines_a_dead_rank_and_preemption_end_in_the_same_bytes(paths: Paths) -> None:
    ends(pretrain(*RANKS))
    expected = product(paths)
    (paths.pretrain / "log.jsonl").unlink()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = ["-s", "pretrain.nodes=2", "-s", f"pretrain.rendezvous={place}"]
    machines = [pretrain(*nodes) for _ in range(2)]
    after_steps(7, lambda: os.kill(workers()[-1], signal.SIGKILL), *machines)
    said = [ends(machine) for machine in machines]
    assert sum("on the machine of rank 0" in text for text in said) == 1
    assert product(paths) == expected

    (paths.pretrain / "log.jsonl").unlink()
    stopped = pretrain(*RANKS)
    after_steps(7, lambda: stopped.send_signal(signal.SIGTERM), stopped)
    assert "stopped by SIGTERM after step" in ends(stopped)
    assert not (paths.pretrain / "log.jsonl").exists()  # the old product, untouched
    assert not workers()
    ends(pretrain(*RANKS))
    assert product(paths) == expected


STOPPING = """
import os, signal, sys
from pathlib import Path
from ssl_core import step
from ssl_core.__main__ import main

take = step.take
def stopping(run, batches, number):
    if number == 5 and not Path("stopped").exists():
        Path("stopped").touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return take(run, batches, number)

step.take = stopping
sys.argv = ["headwater", "pretrain"]
main()
"""


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's use of pygtrie
def test_dvc_does_not_take_a_stopped_stage_for_done(paths: Paths) -> None:
    """It ends with 0, but DVC has removed the old product before and finds no new one."""
    from dvc.exceptions import ReproductionError
    from dvc.repo import Repo

    Path("stopping.py").write_text(STOPPING)
    outs = [paths.pretrain.relative_to(Path.cwd()).as_posix()]
    stage = {"cmd": f"{sys.executable} stopping.py", "deps": ["params.yaml"], "outs": outs}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"pretrain": stage}}))
    paths.pretrain.mkdir(parents=True)
    (paths.pretrain / "encoder.json").write_text("old")
    with Repo.init(no_scm=True) as repo:
        with pytest.raises(ReproductionError) as failed:
            repo.reproduce("pretrain")
        assert "does not exist" in str(failed.value.__cause__)
        assert Path("stopped").exists()
        assert not paths.pretrain.exists()
        repo.reproduce("pretrain")
        assert not repo.status()
    assert len((paths.pretrain / "log.jsonl").read_text().splitlines()) == 8 * 75 // 4


def test_kill_9_at_random_moments_changes_no_byte() -> None:
    """A small run of the benchmark; ``--kills 50`` is its default."""
    script = Path(__file__).parent.parent / "benchmarks/kills.py"
    command = [sys.executable, str(script), "--kills", "4", "--steps", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 4  kills in " in done.stdout


def test_machines_need_a_place_to_meet(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    p = tiny.config(nodes=2, processes=4).pretrain
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(HeadwaterError, match=r"pretrain.nodes 2.*set pretrain.rendezvous"):
        launch.command(p, tmp_path, tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    assert "--rdzv-endpoint=node0:29400" in launch.command(p, tmp_path, tmp_path)
    elastic = tiny.config(nodes="2:4", rendezvous="a:1").pretrain
    assert {"--nnodes=2:4", "--rdzv-endpoint=a:1"} <= {*launch.command(elastic, tmp_path, tmp_path)}
