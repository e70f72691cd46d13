"""Run one stage of dvc.yaml inside a Dagster step, so that both tools agree on what is fresh."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from ssl_core.artifacts import LINEAGE, read_json

ROOT = Path(os.environ.get("HEADWATER_ROOT", Path(__file__).parent.parent))
SINK = "assets.bridge:send"
LOCK_TRIES, LOCK_SECONDS = 40, 3.0


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the stage's process; each Dagster step is a process of its own."""
    old = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in old.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def streamed(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Everything a child process reports through Pipes lands in this run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with dg.open_pipes_session(
        context, dg.PipesEnvContextInjector(), dg.PipesTempFileMessageReader()
    ) as session:
        variables = session.get_bootstrap_env_vars()
        with environment(**variables, HEADWATER_SINK=SINK, PATH=path):
            yield


def with_repo(work: Callable[[Any], Any]) -> Any:
    """``work`` on DVC's Repo; waits where another process holds DVC's lock."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    for attempt in range(LOCK_TRIES):
        try:
            # DVC resolves what lies in the repository against the working directory.
            with contextlib.chdir(ROOT), Repo() as repo:
                return work(repo)
        except LockError:
            if attempt + 1 == LOCK_TRIES:
                raise
            time.sleep(LOCK_SECONDS)
    raise AssertionError("unreachable")


def reproduce(name: str, force: bool = False) -> Any:
    """Bring one stage up to date and return DVC's Stage.

    Raises:
        dg.Failure: the stage failed; its own message is in the log above.
    """
    from dvc.exceptions import ReproductionError

    def work(repo: Any) -> Any:
        repo.reproduce(name, single_item=True, force=force)
        return repo.stage.collect(name)[0]

    try:
        return with_repo(work)
    except ReproductionError as error:
        text = f"stage {name} failed: {error.__cause__ or error}. Its message is in the log."
        raise dg.Failure(text, allow_retries=False) from error


def run_stage(context: dg.AssetExecutionContext, name: str, force: bool = False) -> dg.DataVersion:
    """Run ``name`` unless DVC knows it to be fresh; returns DVC's hash of its first output."""
    with streamed(context):
        stage = reproduce(name, force)
    return dg.DataVersion(str(stage.outs[0].hash_info.value))


def counts(product: Path) -> dict[str, Any]:
    """A product's counts as flat metadata: numbers become plots in the UI."""
    found: dict[str, Any] = {}
    for key, value in read_json(product / LINEAGE)["counts"].items():
        if isinstance(value, dict):
            found |= {f"{key}/{k}": v for k, v in value.items() if isinstance(v, int | float)}
        else:
            found[key] = value
    return {k: float(v) if isinstance(v, float) else v for k, v in found.items()}
