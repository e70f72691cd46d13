"""Training under torchrun: several ranks on this machine, or on several machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import dist, preemption, train
from .artifacts import read_json, write_json
from .config import Config, Pretrain
from .errors import HeadwaterError
from .job import device
from .preemption import Preempted
from .progress import Reporter

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
GRACE = 120  # seconds that torchrun gives its ranks to save after a signal
# Else ranks that were started again meet in the store of those before them, and wait at the
# addresses of the dead: connections refused, or no end (seen with torch 2.15).
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def needed(p: Pretrain) -> bool:
    """Whether this training is one for torchrun."""
    return p.processes > 1 or p.nodes != "1"


def _place(p: Pretrain, work: Path) -> list[str]:
    """torchrun's options on where the ranks meet.

    Raises:
        HeadwaterError: several machines without a meeting place.
    """
    if p.nodes == "1":
        return ["--standalone"]
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "29400")
    place = p.rendezvous or (f"{address}:{port}" if address else "")
    if not place:
        raise HeadwaterError(
            f"pretrain.nodes {p.nodes}",
            "needs a place where the machines meet",
            "set pretrain.rendezvous: host:port, or MASTER_ADDR and MASTER_PORT, to one of them",
        )
    # Machines with another configuration or other images do not meet.
    return [
        f"--nnodes={p.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place}",
        f"--rdzv-id={work.name}",
    ]


def command(p: Pretrain, work: Path, own: Path) -> list[str]:
    """How torchrun is called; ``own`` is this machine's folder with job.json.

    Raises:
        HeadwaterError: several machines without a meeting place.
    """
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *_place(p, work),
        f"--nproc-per-node={p.processes}",
        f"--max-restarts={p.restarts}",
        f"--shutdown-timeout={GRACE}",
        "--monitor-interval=0.1",
        "-m",
        "ssl_core.launch",
        str(own),
    ]


def require_devices(p: Pretrain) -> None:
    """A GPU for each rank: NCCL takes no two ranks on one.

    Raises:
        HeadwaterError: this machine has GPUs, but fewer.
    """
    count = torch.cuda.device_count()
    if 0 < count < p.processes:
        rule = f"are more than the GPUs of this machine ({count})"
        fix = f"set pretrain.processes: {count}; larger batches: pretrain.accumulate"
        raise HeadwaterError(f"pretrain.processes {p.processes}", rule, fix)


def run(cfg: Config, shards: Path, work: Path, out: Path) -> bool:
    """Train under torchrun and wait; whether the encoder was written to ``out``.

    It is on the machine of rank 0 only. ``work`` and ``shards`` must be the same on all.

    Raises:
        HeadwaterError: a rank failed more often than ``pretrain.restarts``, or several machines
            have no place to meet; or there are fewer GPUs here than processes.
        Preempted: SIGTERM or SIGINT came here or to any rank; the state is saved.
    """
    require_devices(cfg.pretrain)
    with tempfile.TemporaryDirectory() as name, preemption.watched() as stop:
        own = Path(name)
        job = {"config": cfg.model_dump(mode="json", by_alias=True), "shards": str(shards)}
        write_json(own / "job.json", job | {"work": str(work), "out": str(out)})
        process = subprocess.Popen(
            command(cfg.pretrain, work, own),
            env=os.environ | FRESH_STORE,
            start_new_session=True,  # Ctrl-C reaches torchrun once, from here
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        code = _wait(process, stop)
        how = {path.name for path in own.iterdir()}
        # Without a word, the ranks were ended before they began.
        if "done" not in how and ("stopped" in how or (stop.signal and "failed" not in how)):
            raise Preempted(stop.signal or signal.SIGTERM)
        if code != 0:
            raise HeadwaterError(
                f"torchrun with {cfg.pretrain.processes} processes",
                f"ended with exit code {code}",
                "read the rank's traceback above; run again to continue from the last checkpoint",
            )
    return (out / "encoder.json").exists()


def _end_with_parent() -> None:
    """In torchrun's process: SIGTERM, that is to save and leave, when the parent is killed."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], stop: preemption.Stop) -> int:
    """Its exit code; hands a signal on."""
    told = False
    while True:
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            if stop.signal and not told:
                process.send_signal(stop.signal)
                told = True


def worker(own: Path) -> None:
    """What each torchrun rank runs; it leaves word of its end in ``own``."""
    for word in ("stopped", "failed"):  # of ranks that torchrun has started again
        (own / word).unlink(missing_ok=True)
    job = read_json(own / "job.json")
    cfg, work = Config.model_validate(job["config"]), Path(job["work"])
    dist.setup(device())
    try:
        with Reporter("pretrain") as report:
            method = train.fit(cfg, Path(job["shards"]), work, report)
            train.export(method, cfg, Path(job["out"]))
        (own / "done").touch()
    except Preempted:
        (own / "stopped").touch()  # and exit 0: torchrun must not start the ranks again
    except BaseException:
        (own / "failed").touch()
        raise
    finally:
        dist.teardown()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
