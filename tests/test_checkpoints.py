"""Checkpoints: whole or passed over, written beside the training, pruned last, errors told."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_core import checkpoints, guard
from ssl_core.checkpoint_writer import Writer
from ssl_core.errors import HeadwaterError


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path)
    yield made
    made.close()


def facts(healthy: bool = True, measure: float | None = None) -> dict[str, Any]:
    return {"healthy": healthy, "measure": measure}


def save(writer: Writer, samples: int, **more: Any) -> None:
    writer.save(samples, {"w": torch.full((4,), float(samples))}, facts(**more))
    writer.wait()


def kept(folder: Path) -> list[int]:
    return [note.samples for note in checkpoints.notes(folder)]


def test_last_two_best_and_last_healthy_are_kept(writer: Writer, tmp_path: Path) -> None:
    for samples, measure in ((1, None), (2, 5.0), (3, 7.0), (4, 6.0), (5, 1.0)):
        save(writer, samples, measure=measure)
    assert kept(tmp_path) == [3, 4, 5]
    for samples in (6, 7, 8):
        save(writer, samples, healthy=False)
    assert kept(tmp_path) == [3, 5, 7, 8]
    best, healthy = checkpoints.best(tmp_path), checkpoints.latest(tmp_path, healthy=True)
    assert best is not None
    assert healthy is not None
    assert (best.samples, healthy.samples) == (3, 5)
    assert {p.stem for p in tmp_path.glob("*.pt")} == {p.stem for p in tmp_path.glob("*.json")}
    checkpoints.forget_after(tmp_path, 5)
    assert kept(tmp_path) == [3, 5]


@pytest.mark.parametrize("damage", ["short", "changed", "gone"])
def test_damaged_one_is_passed_over(writer: Writer, tmp_path: Path, damage: str) -> None:
    for samples in (1, 2):
        save(writer, samples)
    path = checkpoints.notes(tmp_path)[-1].data
    data = path.read_bytes()
    path.write_bytes(data[:-7] if damage == "short" else data[:-1] + bytes([data[-1] ^ 1]))
    if damage == "gone":
        path.unlink()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.samples == 1
    tensor = torch.zeros(4)
    checkpoints.load(found, {"w": tensor})
    assert torch.equal(tensor, torch.ones(4))


def test_other_tensors_are_refused(writer: Writer, tmp_path: Path) -> None:
    save(writer, 1)
    (note,) = checkpoints.notes(tmp_path)
    with pytest.raises(HeadwaterError, match=r"does not fit this model \(w differ\)"):
        checkpoints.load(note, {"w": torch.zeros(5)})


def test_writing_does_not_hold_training_up_and_sees_no_later_step(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write, running = threading.Event(), Writer._write_whole, []

    def slow(self: Writer, path: Path) -> Path:
        running.append(1)
        assert len(running) == 1, "two writes at once"
        assert go.wait(20)
        made = write(self, path)
        running.pop()
        return made

    monkeypatch.setattr(Writer, "_write_whole", slow)
    weight = torch.zeros(4)
    writer.save(1, {"w": weight}, facts())
    weight.fill_(9)  # the next step, while the write is under way
    writer.check()
    assert kept(tmp_path) == []
    threading.Timer(0.2, go.set).start()
    writer.save(2, {"w": weight}, facts())  # waits for the first
    writer.wait()
    for note, value in zip(checkpoints.notes(tmp_path), (0.0, 9.0), strict=True):
        found = torch.empty(4)
        checkpoints.load(note, {"w": found})
        assert torch.equal(found, torch.full((4,), value))


def checked_until_it_tells(writer: Writer) -> None:
    """As the loop does after each step."""
    while True:
        writer.check()


def test_full_disk_is_told_in_a_later_step_and_spares_the_old_one(
    writer: Writer, tmp_path: Path
) -> None:
    big = {"w": torch.zeros(100_000)}
    writer.save(1, big, facts())
    writer.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a write beyond fails
    try:
        writer.save(2, big, facts())
        with pytest.raises(HeadwaterError, match=r"could not be written .*free space"):
            checked_until_it_tells(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.samples == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".pt"]


def test_what_a_crash_left_is_swept(writer: Writer, tmp_path: Path) -> None:
    save(writer, 1)
    for name in (".samples-000000000002.pt.x1y2", "samples-000000000002.pt"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "samples-000000000003").mkdir()
    (tmp_path / "log.jsonl").touch()
    Writer(tmp_path).close()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"samples-000000000001.pt", "samples-000000000001.json", "log.jsonl"}


def test_a_pickle_is_not_loaded(writer: Writer, tmp_path: Path) -> None:
    save(writer, 1)
    (note,) = checkpoints.notes(tmp_path)
    torch.save({"w": Path("/")}, note.data)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.load(note, {"w": torch.zeros(4)})


def test_the_measure_counts_from_half_on_and_is_smooth() -> None:
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 16, generator=g)
    thin = wide * torch.linspace(1, 0.01, 16)
    watch = guard.Guard(100, "")
    watch.look(0, wide, 1.0, {})
    assert watch.measure(49) is None
    first = watch.measure(50)
    assert first == pytest.approx(guard.spread(wide)[1])
    watch.look(50, thin, 1.0, {})
    mixed = guard.SMOOTH * guard.spread(wide)[1] + (1 - guard.SMOOTH) * guard.spread(thin)[1]
    assert watch.measure(50) == pytest.approx(mixed)
    again = guard.Guard(100, "")
    again.load(watch.state())
    assert again.measure(50) == watch.measure(50)
