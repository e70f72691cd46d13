"""Threads and Ray do the same work in the same order; what is known already is not done again."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ingest import age

from ssl_core import engine
from ssl_core.config import Config, Paths, Scale, load
from ssl_core.errors import HeadwaterError
from ssl_core.stages import ingest, seed_embed, validate

TWO = Scale(engine="ray", workers=2)


def ask(project: Path, **scale: Any) -> Config:
    changes = {f"scale.{k}": v for k, v in scale.items()}
    return load(project / "params.yaml", changes | {"validate.min_images": 10})


def products(root: Path) -> dict[str, bytes]:
    """Every byte of the two products."""
    paths = Paths(root)
    folders = (paths.manifest, paths.validation, paths.seed_embeddings)
    files = [f for p in folders for f in sorted(p.rglob("*"))]
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in files}


def run(root: Path, **scale: Any) -> dict[str, bytes]:
    cfg, paths = ask(root, **scale), Paths(root)
    for stage in (ingest, validate, seed_embed):
        stage.run(cfg, paths)
    return products(root)


def thin(project: Path) -> None:
    """A third of the pictures, and three that cannot be read."""
    for place, file in enumerate(sorted((project / "images").rglob("*.png"))):
        if place % 3:
            file.unlink()
    first = min((project / "images").rglob("*.png"))
    (first.parent / "empty.png").write_bytes(b"")
    (first.parent / "half.png").write_bytes(first.read_bytes()[:200])
    (first.parent / "words.png").write_text("no picture")


# ---- threads -----------------------------------------------------------------------------------


def slow_square(x: int) -> int:
    time.sleep(0.002 * (x % 3))
    return x * x


def test_threads_keep_the_order_and_pass_errors_on() -> None:
    assert list(engine.each(slow_square, range(40), Scale(), ahead=8)) == [x * x for x in range(40)]

    def fail(x: int) -> int:
        if x == 5:
            raise HeadwaterError("five", "is bad", "take six")
        return x

    found = engine.each(fail, range(10), Scale(), ahead=2)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(HeadwaterError, match="five: is bad"):
        next(found)


def test_only_new_images_are_read_and_embedded_with_the_bytes_of_a_whole_run(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin(project)
    late = sorted((project / "images").rglob("[0-9]*.png"))[::6]
    aside = project / "aside"
    aside.mkdir()
    for file in late:
        shutil.move(file, aside / file.name)
    age(project / "images")
    run(project)
    for file in late:
        shutil.move(aside / file.name, file)
    age(project / "images")

    read, seen, embedded = [], [], []
    one, look, many = ingest.examine, validate.measure, seed_embed.load
    monkeypatch.setattr(ingest, "examine", lambda *a: read.append(a[-1]) or one(*a))
    monkeypatch.setattr(validate, "measure", lambda *a: seen.append(a[-1]) or look(*a))
    monkeypatch.setattr(seed_embed, "load", lambda *a: embedded.extend(a[-1]) or many(*a))
    added = run(project)
    good = {f.relative_to(project).as_posix() for f in late}
    bad = {f"images/flower/{n}.png" for n in ("empty", "half", "words")}
    assert set(embedded) == set(seen) == good
    assert set(read) == good | bad  # what cannot be read is tried again
    assert len(read) == len(good | bad)

    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(project / "images", whole / "images")
    shutil.copy(project / "params.yaml", whole)
    again = run(whole)
    for found in (again, added):  # one of which had an earlier validation to compare classes with
        for name in ("validation/report.json", "validation/lineage.json"):
            del found[f"data/products/{name}"]
        del found["data/products/seed_embeddings/lineage.json"]
    assert again == added


def test_features_do_not_depend_on_the_batch(project: Path) -> None:
    cfg = ask(project).seed_encoder
    refs = [f"images/{p.parent.name}/{p.name}" for p in sorted(project.rglob("*.png"))[:9]]
    pixels = seed_embed.load(project, cfg, 3, refs)
    whole = seed_embed.embed(cfg, pixels)
    for rows in ([3], [8, 0], [1, 2, 4, 5, 6]):
        assert np.array_equal(seed_embed.embed(cfg, pixels[rows]), whole[rows])


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HeadwaterError, match=r"needs Ray.*headwater\[ray\]"):
        list(engine.each(slow_square, range(3), TWO, ahead=2))


# ---- Ray ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Two workers for all tests of this module; skipped only where Ray is not installed."""
    found = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        here = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        patch.setenv("PYTHONPATH", here)  # workers import this module
        with engine.session(TWO):
            yield found


def who(x: int) -> tuple[int, int]:
    time.sleep(0.05)
    return x, os.getpid()


def refuse(x: int) -> int:
    if x == 7:
        raise HeadwaterError("seven", "is bad", "take eight")
    return x


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_works_in_other_processes_and_keeps_the_order(ray: Any) -> None:
    found = list(engine.each(who, range(60), TWO, ahead=8, chunk=4))
    assert [x for x, _ in found] == list(range(60))
    pids = {pid for _, pid in found}
    assert os.getpid() not in pids
    assert len(pids) == 2
    with pytest.raises(HeadwaterError, match=r"seven: is bad.*take eight"):
        list(engine.each(refuse, range(20), TWO, ahead=8, chunk=3))


@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_ray_make_the_bytes_of_a_local_run(
    ray: Any, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    thin(project)
    other = tmp_path_factory.mktemp("ray")
    shutil.copytree(project / "images", other / "images")
    shutil.copy(project / "params.yaml", other)
    local = run(project)
    assert len(local) >= 5
    assert run(other, engine="ray", workers=2) == local
    # A file that vanished since: the same words.
    victim = min((other / "images").rglob("[0-9]*.png"))
    victim.unlink()
    shutil.rmtree(Paths(other).runs)
    with pytest.raises(HeadwaterError, match="was readable at ingest and is not now"):
        seed_embed.run(ask(other, engine="ray", workers=2), Paths(other))
