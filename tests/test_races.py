"""Kill -9 at every durable write, two processes at once, locks of the dead: always a champion."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import crash
import pytest
from toy import CFG, CLASSES, build, champion, deploy

from ssl_core import registry
from ssl_core.artifacts import read_json
from ssl_core.config import Config, Paths
from ssl_core.lock import exclusive
from ssl_core.stages import promote, repair, watch

DAY, KEY = "2025-01-07", "k"


def settings(**changes: Any) -> Config:
    tree: dict[str, Any] = CFG.model_dump(by_alias=True)
    tree["deploy"] |= {"detectors": [], "permutations": 99}
    tree["repair"] |= {"rungs": ["nothing", "refit_head"], **changes}
    return Config.model_validate(tree)


CASE = settings()


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion that a day of moved hues has harmed."""
    paths = Paths(tmp_path_factory.mktemp("harmed"))
    champion(paths, CASE)
    deploy(paths, DAY, 0.1, cfg=CASE)
    return paths.root


def copy(template: Path, to: Path) -> Paths:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(template, to)
    return Paths(to)


def events(paths: Paths) -> Counter[str]:
    return Counter(e["event"] for e in registry.history(paths.registry))


def valid(paths: Paths) -> str:
    """The champion's id; its files have the checksums its card names."""
    name = registry.champion(paths.registry)
    assert name is not None
    registry.verify(paths.registry, name)
    return name


def mend(root: Path, cfg: Config = CASE, key: str = KEY) -> None:
    repair.run(cfg, Paths(root), [DAY], key)


def test_a_repair_survives_a_kill_at_every_write(harmed: Path, tmp_path: Path) -> None:
    old, clean = valid(Paths(harmed)), copy(harmed, tmp_path / "clean")
    want = repair.run(CASE, clean, [DAY], KEY)
    assert want["outcome"] == "promoted"
    number, done = 0, False
    while not done:
        number += 1
        paths = copy(harmed, tmp_path / "p")
        done = crash.ended(crash.start(mend, paths.root, number=number))
        assert valid(paths) in (old, want["candidate"])
        found = repair.run(CASE, paths, [DAY], KEY)  # goes on, or repeats
        assert (found["outcome"], found["candidate"]) == ("promoted", want["candidate"])
        assert found["attempt"] == found["looks"] == 1  # no second look was bought
        assert valid(paths) == want["candidate"]
        assert events(paths) == {"promote": 2, "candidate": 1}
        assert len(repair.history(paths)) == 1
        assert read_json(paths.repair / KEY / "decision.json") == found
        assert not list(paths.registry.rglob(".*"))  # nothing half written is left
    assert number > 12


def test_two_repairs_at_once_are_one(harmed: Path, tmp_path: Path) -> None:
    paths = copy(harmed, tmp_path / "p")
    both = [crash.start(mend, paths.root) for _ in range(2)]
    assert all(crash.ended(p) for p in both)
    assert events(paths) == {"promote": 2, "candidate": 1}
    assert [d["outcome"] for d in repair.history(paths)] == ["promoted"]


def test_another_request_for_the_same_harm_finds_nothing_left(harmed: Path, tmp_path: Path) -> None:
    paths = copy(harmed, tmp_path / "p")
    both = [crash.start(mend, paths.root, CASE, key) for key in ("one", "two")]
    assert all(crash.ended(p) for p in both)
    assert sorted(d["outcome"] for d in repair.history(paths)) == ["nothing", "promoted"]
    assert events(paths)["promote"] == 2


def test_a_dead_holder_keeps_no_lock(tmp_path: Path) -> None:
    lock, told = tmp_path / "a" / ".lock", tmp_path / "told"
    holder = crash.start(crash.hold, lock, told)
    while not told.exists():
        time.sleep(0.01)
    assert lock.exists()
    holder.kill()
    holder.join(10)
    began = time.monotonic()
    with exclusive(lock):
        assert time.monotonic() - began < 5


# ---- the way back ------------------------------------------------------------------------------


def go_back(root: Path) -> None:
    watch.run(CASE, Paths(root))


@pytest.fixture(scope="module")
def regretted(harmed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repair was promoted, then the world became what it was before the harm and worse."""
    paths = copy(harmed, tmp_path_factory.mktemp("regretted") / "p")
    repair.run(CASE, paths, [DAY], KEY)
    deploy(paths, "2025-01-10", -0.05, cfg=CASE)
    return paths.root


def test_a_rollback_survives_a_kill_at_every_write(regretted: Path, tmp_path: Path) -> None:
    new, old = valid(Paths(regretted)), str(registry.lineage(Paths(regretted).registry)[0])
    bad = copy(regretted, tmp_path / "p")
    # make the old one right and the new one wrong on that day, whatever they were
    number, done = 0, False
    while not done:
        number += 1
        paths = copy(regretted, bad.root)
        spoil(paths, new)
        done = crash.ended(crash.start(go_back, paths.root, number=number))
        assert valid(paths) in (old, new)
        watch.run(CASE, paths)
        assert valid(paths) == old
        assert events(paths) == {"promote": 2, "candidate": 1, "rollback": 1}
        assert new in registry.rejected(paths.registry)
        watch.run(CASE, paths)
        assert events(paths)["rollback"] == 1
    assert number > 4


def spoil(paths: Paths, model: str) -> None:
    """Let the log say that the new champion named everything wrongly on the last day."""
    import pandas as pd

    file = paths.predictions / "date=2025-01-10/part-0.parquet"
    frame = pd.read_parquet(file)
    assert (frame["model"] == model).all()
    frame.assign(prediction="violet").to_parquet(file, index=False)


# ---- the chain's own gate ----------------------------------------------------------------------


def take_over(root: Path) -> None:
    promote.run(CFG, Paths(root))


def test_a_promotion_survives_a_kill_at_every_write(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "t")
    old = champion(paths)
    build(paths, {"a": CLASSES[:3], "b": CLASSES[:3], "c": CLASSES[3:]}, seed=1)
    number, done = 0, False
    while not done:
        number += 1
        copied = copy(paths.root, tmp_path / "p")
        done = crash.ended(crash.start(take_over, copied.root, number=number))
        now = valid(copied)
        promote.run(CFG, copied)
        assert valid(copied) != old
        assert now in (old, valid(copied))
        assert events(copied) == {"promote": 2}
        assert (copied.promotion / "decision.json").exists()
        assert not list(copied.registry.rglob(".*"))
    assert number > 5
