"""``headwater run``: the chain, through DVC where the project is under it, and the report."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..artifacts import append_line, read_json, read_lines
from ..errors import HeadwaterError
from ..lock import exclusive
from ._common import CHAIN, DEFAULT, Json, Params, Set, emit, settings
from ._state import labelled, product, record, standings

if TYPE_CHECKING:
    from ..config import Config, Paths

FAILED = "failed"  # the event that carries a HeadwaterError
PATIENCE = 30.0  # seconds a stage has to end after SIGTERM, before SIGKILL
Event = dict[str, Any]


def command(
    stages: Annotated[
        list[str] | None, typer.Argument(help="up to these; empty: all, and the report")
    ] = None,
    params: Params = DEFAULT,
    set_: Set = None,
    as_json: Json = False,
    plain: Annotated[bool, typer.Option(help="without DVC: one stage after another")] = False,
    force: Annotated[bool, typer.Option(help="also what is fresh")] = False,
) -> None:
    """Run the chain: what is fresh is skipped, what was interrupted goes on, a failed gate stops.

    In a DVC project this is `dvc repro`, so that `dvc push` and old commits work; elsewhere the
    stages run one after another and are compared by their lineage files. Examples:

        headwater run

        headwater run shard pretrain

        headwater run --plain -s pretrain.epochs=50
    """
    from ..config import Paths

    paths, cfg, began = Paths(), settings(params, set_), time.time()
    names = known(stages or [])
    through_dvc = not plain and under_dvc(paths, params, set_)
    with events() as file:
        try:
            goals = names or whole(cfg, paths, through_dvc, force, file)
            _go(goals, cfg, paths, through_dvc, force, file)
        except HeadwaterError:
            if not names:  # the page shows how far it came and what was rejected
                with contextlib.suppress(Exception):  # the reason above it counts
                    write_report(cfg, paths)
            raise
        page = None if names else write_report(cfg, paths)
        result = summary(happened(file, began), goals, paths, page)
    if as_json:
        emit(result)
    else:
        typer.echo(text(result))


def known(names: list[str]) -> list[str]:
    """Stage names, with - or _.

    Raises:
        HeadwaterError: no such stage.
    """
    found = [n.replace("-", "_") for n in names]
    for name in found:
        if name not in CHAIN:
            raise HeadwaterError(
                f"stage '{name}'", "is not in the chain", f"take {', '.join(CHAIN)}"
            )
    return found


def under_dvc(paths: Paths, params: Path, changes: list[str] | None) -> bool:
    """Whether the chain goes through DVC.

    Raises:
        HeadwaterError: settings that DVC could not record.
    """
    there = (paths.root / ".dvc").is_dir() and (paths.root / "dvc.yaml").exists()
    if not there or importlib.util.find_spec("dvc") is None:
        return False
    if changes or params != DEFAULT:
        rule = "cannot be recorded by DVC, which reads params.yaml"
        raise HeadwaterError("--set or --params", rule, "edit params.yaml, or add --plain")
    return True


def whole(cfg: Config, paths: Paths, through_dvc: bool, force: bool, file: Path) -> list[str]:
    """All stages, or those up to ``embed`` where no image has a label to evaluate by."""
    if cfg.validate_.min_classes >= 2:
        return list(CHAIN)
    _go(["validate"], cfg, paths, through_dvc, force, file)
    names = list(CHAIN)
    return names if labelled(cfg, paths) else names[: names.index("embed") + 1]


def _go(
    goals: list[str], cfg: Config, paths: Paths, through_dvc: bool, force: bool, file: Path
) -> None:
    if through_dvc:
        reproduce(goals, paths, force, file)
    else:
        one_by_one(goals, cfg, paths, force)


# ---- two ways ----------------------------------------------------------------------------------


@contextmanager
def events() -> Iterator[Path]:
    """A file that stages report to, here and in processes below: HEADWATER_EVENTS if it is set."""
    given = os.environ.get("HEADWATER_EVENTS")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(given or f"{folder}/events.jsonl")
        os.environ["HEADWATER_EVENTS"] = str(file)
        try:
            yield file
        finally:
            if given is None:
                del os.environ["HEADWATER_EVENTS"]


def happened(file: Path, since: float) -> list[Event]:
    """Events of this call."""
    return [e for e in read_lines(file) if e["time"] >= since]


def note(path: str, error: HeadwaterError) -> None:
    """Leave the reason why a stage stopped where ``headwater run`` reads it."""
    reason = {"value": str(error.value), "rule": error.rule, "fix": error.fix}
    append_line(Path(path), {"event": FAILED, "time": time.time(), **reason})


def reproduce(goals: list[str], paths: Paths, force: bool, file: Path) -> None:
    """``dvc repro`` in a process group of its own, which ends with this one.

    Raises:
        HeadwaterError: a stage stopped; the stage's own reason.
    """
    words = [sys.executable, "-m", "dvc", "repro", "--quiet", *(["--force"] if force else [])]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    began = time.time()
    # Progress goes to stderr; what stages print for machines is not wanted here.
    process = subprocess.Popen(
        [*words, *goals],
        cwd=paths.root,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    with _ending(process):
        code = process.wait()
    if code:
        raise reason(happened(file, began), code)


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """However this process ends (but by SIGKILL), the stages end before it."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        signal.signal(signal.SIGTERM, before)


def reason(found: list[Event], code: int) -> HeadwaterError:
    """Why the chain stopped: what the stage said, or where to look."""
    said = [e for e in found if e["event"] == FAILED]
    if said:
        return HeadwaterError(said[-1]["value"], said[-1]["rule"], said[-1]["fix"])
    broken = [e["stage"] for e in found if e["event"] == "error"]
    where = f"stage {broken[-1]}" if broken else "dvc repro"
    return HeadwaterError(
        where, f"ended with code {code}", "its message is above; headwater doctor"
    )


def one_by_one(goals: list[str], cfg: Config, paths: Paths, force: bool) -> None:
    """Run what is not fresh, up to the last goal, in this process; another run ends before."""
    names = list(CHAIN)
    with exclusive(paths.runs / "chain.lock"):
        for i, name in enumerate(names[: 1 + max(names.index(g) for g in goals)]):
            if force or standings(cfg, paths)[i].state != "fresh":
                importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)


# ---- afterwards --------------------------------------------------------------------------------


def write_report(cfg: Config, paths: Paths) -> str | None:
    """The page about everything; None where nothing was read yet."""
    if record(product(paths, "ingest")) is None:
        return None
    from ..stages import report

    return str(report.run(cfg, paths)["file"])


def summary(found: list[Event], goals: list[str], paths: Paths, page: str | None) -> Event:
    """What ran and how long, what was fresh, and what came out."""
    ran = {e["stage"]: round(e["seconds"], 1) for e in found if e["event"] == "end"}
    last = list(CHAIN).index(goals[-1])
    decision = paths.promotion / "decision.json"
    return {
        "ran": {k: v for k, v in ran.items() if k in CHAIN},
        "fresh": [s for s in list(CHAIN)[: last + 1] if s not in ran],
        "unlabelled": goals[-1] == "embed" and page is not None,
        "decision": read_json(decision)["reason"] if decision.exists() else None,
        "report": page,
    }


def text(result: Event) -> str:
    """The same for people."""
    lines = [f"  {k:<12}{v:8.1f} s" for k, v in result["ran"].items()]
    if result["fresh"]:
        lines.append(f"  fresh       {', '.join(result['fresh'])}")
    if result["unlabelled"]:
        lines.append(
            "No image has a label: evaluate and promote were left out. Add a metadata.csv (path,"
            "label) or sort some images into folders by class, and set validate.min_classes: 2."
        )
    if result["decision"]:
        lines.append(result["decision"])
    if result["report"]:
        lines.append(f"Report: {result['report']}")
    return "\n".join(lines)
