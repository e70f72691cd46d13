"""`make up` without Docker: Postgres, daemon, code server and webserver, killed and restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import ROOT
from s3server import free_ports

from pipelines import home, up

PATIENCE = 60.0  # seconds for anything to happen


@dataclass
class Site:
    """Running services, and what their runs wrote."""

    folder: Path
    env: dict[str, str]

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


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)
    return found


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
    config["concurrency"]["runs"] = {"max_concurrent_runs": 3}
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


def test_each_request_runs_once_while_the_daemon_is_killed(site: Site) -> None:
    """A sensor asks for all files at each look; what a schedule missed is made up for."""
    query = """mutation ($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) {
      __typename } }"""
    place = {"repositoryLocationName": "headwater", "repositoryName": "__repository__"}
    gql(query, s={**place, "scheduleName": "minutely"})
    began = time.time()
    for i in range(6):
        (site.folder / f"in/{i}").touch()
        if i in (1, 3):
            until(lambda: runs(dagster__sensor_name="files"))
            site.kill("daemon")
    until(lambda: len([r for r in site.log("end") if len(r["key"]) == 1]) >= 6)
    until(lambda: runs(dagster__schedule_name="minutely"), 75)
    time.sleep(6)  # one more look of the sensor, in which a doubled run would come
    found = Counter(r["tags"]["dagster/run_key"] for r in runs(dagster__sensor_name="files"))
    assert found == Counter(map(str, range(6)))
    assert Counter(r["key"] for r in site.log("begin") if len(r["key"]) == 1) == found
    ticks = Counter(
        r["tags"]["dagster/scheduled_execution_time"]
        for r in runs(dagster__schedule_name="minutely")
    )
    assert set(ticks.values()) == {1}
    assert len(ticks) >= int(time.time() // 60 - began // 60)


def test_one_step_per_pool_at_a_time(site: Site) -> None:
    spans, open_ = [], {}
    for row in sorted(site.log(), key=lambda r: r["time"]):
        if row["name"] == "begin":
            open_[row["key"]] = row["time"]
        else:
            spans.append((open_.pop(row["key"]), row["time"]))
    assert len(spans) >= 6
    assert all(b <= a for (_, b), (a, _) in pairwise(spans))


def test_a_killed_worker_is_replaced_and_a_failed_step_is_not(site: Site) -> None:
    first, bad = launch("long", "victim"), launch("wrong", "bad")
    row = until(lambda: [r for r in site.log("begin") if r["key"] == "victim"])[0]
    os.kill(row["pid"], signal.SIGKILL)
    again = until(lambda: [r for r in site.log("begin") if r["key"] == "victim" and r["retry"]])
    assert again[0]["retry"] == "1"
    (site.folder / "go").touch()
    until(lambda: states(key="victim") == {"FAILURE": 1, "SUCCESS": 1})
    (retried,) = [r for r in runs(key="victim") if r["status"] == "SUCCESS"]
    assert retried["tags"]["dagster/parent_run_id"] == first
    assert [r["runId"] for r in runs(key="bad")] == [bad]
    (site.folder / "go").unlink()


def test_the_queue_holds_runs_back_and_a_reload_touches_none(site: Site) -> None:
    for _ in range(5):
        launch("long", "queue")
    until(lambda: states(key="queue") == {"STARTED": 3, "QUEUED": 2})
    (site.folder / "more").touch()
    assert site.call("reload").stdout.strip() == "reloaded"
    assert states(key="queue") == {"STARTED": 3, "QUEUED": 2}
    (site.folder / "go").touch()
    until(lambda: states(key="queue") == {"SUCCESS": 5})
    (site.folder / "go").unlink()
    launch("more", "more")  # a job that the new code has
    until(lambda: [r for r in site.log("begin") if r["key"] == "more"])


def test_code_that_does_not_load_is_said_and_does_not_take_the_old_one(site: Site) -> None:
    """The run of the job above still goes on; then the code server dies with it."""
    worker = next(r["pid"] for r in site.log("begin") if r["key"] == "more")
    site.kill("code")
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"
    until(lambda: states(key="more")["FAILURE"] == 1)  # pipelines/launcher.py noticed
    until(lambda: len([r for r in site.log("begin") if r["key"] == "more"]) == 2)
    (site.folder / "go").touch()
    until(lambda: states(key="more") == {"FAILURE": 1, "SUCCESS": 1})


def test_postgres_killed_loses_nothing(site: Site) -> None:
    known = {r["runId"] for r in runs()}
    site.kill("postgres")
    until(lambda: "no heartbeat" not in site.call("status", check=False).stdout)
    until(lambda: {r["runId"] for r in runs()} >= known)


def test_stop_leaves_nothing_and_a_start_finds_all(site: Site) -> None:
    pids = up.living(site.folder / "service")
    known = {r["runId"]: r["status"] for r in runs()}
    assert site.call("stop").stdout.strip() == "stopped"
    assert not any(psutil.pid_exists(p) for p in pids.values())
    assert site.call("status", check=False).returncode == 1
    site.call("start")
    assert {r["runId"]: r["status"] for r in runs()}.items() >= known.items()


def test_production_limits_runs_as_the_desk_does() -> None:
    production = yaml.safe_load((ROOT / "pipelines/deploy/dagster.yaml").read_text())
    for key, value in yaml.safe_load(home.SETTINGS).items():
        if key != "run_monitoring":
            assert production[key] == value, key
