"""`make up` without Docker: Postgres, daemon, code server and webserver, killed and restarted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from conftest import ROOT
from s3server import free_ports

from pipelines import home, launcher, up

PATIENCE = 480.0  # seconds for anything to happen
EVERY = 120  # seconds between two ticks of the schedule


@dataclass
class Site:
    """Running services, and what their runs wrote."""

    folder: Path
    env: dict[str, str]
    began: float = 0.0  # when the schedule was turned on

    def call(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pipelines.up", command]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, cwd=ROOT)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def log(self, name: str = "") -> list[dict[str, Any]]:
        file = self.folder / "log.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [r for r in map(json.loads, lines) if name in ("", r["name"])]

    def pid(self, name: str) -> int | None:
        return up.living(self.folder / "service").get(name)

    def kill(self, name: str) -> None:
        """As a power cut does; waits until another one is in its place."""
        pid = self.pid(name)
        assert pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.pid(name) not in (None, pid))


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(TimeoutError, urllib.error.URLError):  # busy, or not there yet
            if found := true():
                return found
        assert time.monotonic() < end, "\n".join(map(str, runs()))
        time.sleep(0.1)


def gql(query: str, **variables: Any) -> Any:
    return up.ask(query, variables=variables)


def launch(job: str, key: str) -> str:
    place = {"repositoryLocationName": "headwater", "repositoryName": "__repository__"}
    query = """mutation ($p: ExecutionParams!) { launchRun(executionParams: $p) {
      ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
    params = {
        "selector": {**place, "jobName": job},
        "executionMetadata": {"tags": [{"key": "key", "value": key}]},
    }
    return str(gql(query, p=params)["launchRun"]["run"]["runId"])


def runs(**tags: str) -> list[dict[str, Any]]:
    wanted = [{"key": k.replace("__", "/"), "value": v} for k, v in tags.items()]
    query = """query ($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results {
      runId status jobName startTime endTime tags { key value } } } } }"""
    found = gql(query, f={"tags": wanted})["runsOrError"]["results"]
    return [r | {"tags": {t["key"]: t["value"] for t in r["tags"]}} for r in found]


def states(**tags: str) -> Counter[str]:
    return Counter(r["status"] for r in runs(**tags))


def turn_on(schedule: str) -> None:
    query = """mutation ($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) {
      __typename } }"""
    place = {"repositoryLocationName": "headwater", "repositoryName": "__repository__"}
    found = gql(query, s={**place, "scheduleName": schedule})
    assert found["startSchedule"]["__typename"] == "ScheduleStateResult"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Not below pytest's folder, which only root may enter: Postgres runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="headwater-up-"))
    folder.chmod(0o755)
    (folder / "in").mkdir()
    (folder / "service").mkdir()
    text = (ROOT / "pipelines/deploy/dagster.yaml").read_text()
    config = yaml.safe_load(text)
    config["run_monitoring"] |= {"poll_interval_seconds": 1}
    config["concurrency"]["runs"] = {"max_concurrent_runs": 2}
    config["run_queue"] |= {"dequeue_interval_seconds": 1, "user_code_failure_retry_delay": 2}
    (folder / "service/dagster.yaml").write_text(yaml.safe_dump(config))
    own = {
        "HEADWATER_SERVICE": str(folder / "service"),
        "HEADWATER_PORT": str(free_ports(1)[0]),
        "HEADWATER_DEFINITIONS": "toy_location",
        "TOY": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    made = Site(folder, {k: v for k, v in os.environ.items() if "DAGSTER" not in k} | own)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        try:
            made.call("start")
            turn_on("often")
            made.began = time.time()
            yield made
        finally:
            made.call("stop")
            shutil.rmtree(folder)


def test_all_is_well_and_a_second_start_changes_nothing(site: Site) -> None:
    before = up.living(site.folder / "service")
    assert set(before) == {"supervisor", "postgres", "code", "daemon", "web"}
    site.call("start")
    assert up.living(site.folder / "service") == before
    said = site.call("status").stdout
    assert "code location headwater" in said
    assert all(line.endswith(" ok") for line in said.splitlines())
    secret = site.folder / "service/postgres.password"
    assert secret.stat().st_mode & 0o077 == 0


def test_each_request_of_a_sensor_runs_once_while_the_daemon_is_killed(site: Site) -> None:
    """It asks for all files at each look; the keys of runs are what makes each run once."""
    for name in "abcd":
        (site.folder / "in" / name).touch()
        if name == "b":
            until(lambda: runs(dagster__sensor_name="files"))
            site.kill("daemon")
    until(lambda: len([r for r in site.log("end") if r["key"] in "abcd"]) >= 4)
    until(lambda: sensed() == {"a": 1, "b": 1, "c": 1, "d": 1})


def sensed() -> Counter[str]:
    return Counter(r["tags"]["dagster/run_key"] for r in runs(dagster__sensor_name="files"))


def test_a_killed_worker_is_replaced_and_a_failed_step_is_not(site: Site) -> None:
    first, bad = launch("long", "victim"), launch("wrong", "bad")
    row = until(lambda: begun(site, "victim"))[0]
    os.kill(row["pid"], signal.SIGKILL)
    until(lambda: len(begun(site, "victim")) == 2)
    assert [r["retry"] for r in begun(site, "victim")] == [None, "1"]
    (site.folder / "go").touch()
    until(lambda: states(key="victim") == {"FAILURE": 1, "SUCCESS": 1})
    (retried,) = [r for r in runs(key="victim") if r["status"] == "SUCCESS"]
    assert retried["tags"]["dagster/parent_run_id"] == first
    assert [r["runId"] for r in runs(key="bad")] == [bad]
    (site.folder / "go").unlink()


def begun(site: Site, key: str) -> list[dict[str, Any]]:
    return [r for r in site.log("begin") if r["key"] == key]


def test_the_queue_holds_runs_back_and_a_reload_touches_none(site: Site) -> None:
    for _ in range(3):
        launch("long", "queue")
    until(lambda: states(key="queue") == {"STARTED": 2, "QUEUED": 1})
    (site.folder / "more").touch()
    assert site.call("reload").stdout.strip() == "reloaded"
    assert states(key="queue") == {"STARTED": 2, "QUEUED": 1}
    (site.folder / "go").touch()
    until(lambda: states(key="queue") == {"SUCCESS": 3})
    (site.folder / "go").unlink()
    launch("more", "more")  # a job that the new code has
    until(lambda: begun(site, "more"))


def test_a_code_server_that_dies_takes_its_runs_along_and_they_start_again(site: Site) -> None:
    """Nobody is left to tell of the run above but pipelines/launcher.py."""
    worker = begun(site, "more")[0]["pid"]
    site.kill("code")
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"
    (site.folder / "go").touch()
    until(lambda: states(key="more") == {"FAILURE": 1, "SUCCESS": 1})
    assert [r["retry"] for r in begun(site, "more")] == [None, "1"]


def test_what_was_done_survives_postgres_and_a_stop(site: Site) -> None:
    until(lambda: runs(dagster__schedule_name="often"))
    site.kill("postgres")
    until(lambda: "connection" not in site.call("status", check=False).stdout)
    known = {r["runId"]: r["status"] for r in until(runs)}
    pids = up.living(site.folder / "service")
    assert site.call("stop").stdout.strip() == "stopped"
    assert not any(psutil.pid_exists(p) for p in pids.values())
    assert site.call("status", check=False).returncode == 1
    site.call("start")
    done = {k: v for k, v in known.items() if v in ("SUCCESS", "FAILURE")}
    assert {r["runId"]: r["status"] for r in runs()}.items() >= done.items()


def test_in_all_that_none_was_missed_or_doubled(site: Site) -> None:
    """Every tick since the schedule was turned on, and every file, has one run."""

    def made() -> Counter[str]:
        return Counter(r["tags"]["key"] for r in runs(dagster__schedule_name="often"))

    def ticks() -> set[str]:
        first = datetime.fromtimestamp(site.began // EVERY * EVERY + EVERY, UTC)
        past = int(time.time() - 5 - first.timestamp()) // EVERY
        return {(first + timedelta(seconds=EVERY * i)).isoformat() for i in range(past + 1)}

    until(lambda: len(ticks()) >= 2 and set(made()) >= ticks())
    assert set(made().values()) == {1}
    assert set(sensed().values()) == {1}


def test_one_step_per_pool_at_a_time(site: Site) -> None:
    until(lambda: len([r for r in site.log("end") if r["job"] == "quick"]) >= 6)
    spans, open_ = [], {}
    for row in sorted(site.log(), key=lambda r: r["time"]):
        if row["job"] == "quick" and row["name"] == "begin":
            open_[row["key"]] = row["time"]
        elif row["job"] == "quick":
            spans.append((open_.pop(row["key"]), row["time"]))
    assert all(b <= a for (_, b), (a, _) in pairwise(spans))


def test_a_code_server_that_came_back_between_two_looks_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon may not have found it yet, and would give up what it was to start again."""
    clock, there = iter([0.0, 71.0, 80.0, 149.0, 151.0]), iter("aabbb")
    monkeypatch.setattr(launcher, "server_id", lambda *_: next(there))
    monkeypatch.setattr(launcher, "time", SimpleNamespace(monotonic=lambda: now))
    local, found = launcher.Local(), []
    for now in clock:  # noqa: B007 (read above)
        found.append(local._settled())
    assert found == [False, True, False, False, True]


def test_production_limits_runs_as_the_desk_does() -> None:
    production = yaml.safe_load((ROOT / "pipelines/deploy/dagster.yaml").read_text())
    for key, value in yaml.safe_load(home.SETTINGS).items():
        if key != "run_monitoring":
            assert production[key] == value, key
