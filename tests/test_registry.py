"""The registry: content addresses, checksums, what the log makes of a history."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core import models, registry
from ssl_core.artifacts import read_json, read_lines
from ssl_core.errors import HeadwaterError
from ssl_core.evaluate import _head

ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    meta = {"image_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    models.save(models.create("vit_tiny_patch16_224", ARGS), folder, meta)
    return folder


def files(encoder: Path, folder: Path, seed: int) -> dict[str, Path]:
    """One encoder with the head of ``seed``: each seed is another model."""
    weight = np.random.default_rng(seed).normal(size=(3, 8)).astype(np.float32)
    _head.save(_head.Head(weight, np.zeros(3, np.float32), ("a", "b", "c"), 2.0, {}), folder)
    reference = folder / "reference.parquet"
    reference.write_bytes(b"rows")
    own = {models.WEIGHTS: encoder, models.META: encoder}
    found = {name: own.get(name, folder) / name for name in registry.CORE}
    return {**found, "reference.parquet": reference}


@pytest.fixture
def three(encoder_folder: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A registry with three models and no champion."""
    ids = []
    for seed in range(3):
        (tmp_path / f"m{seed}").mkdir()
        made = files(encoder_folder, tmp_path / f"m{seed}", seed)
        ids.append(registry.add(tmp_path / "registry", made, {"sources": ["s"]}))
    return tmp_path / "registry", ids


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_ids_follow_content(encoder_folder: Path, tmp_path: Path) -> None:
    names = []
    for i, seed in enumerate((0, 0, 1)):
        (tmp_path / str(i)).mkdir()
        names.append(registry.identify(files(encoder_folder, tmp_path / str(i), seed)))
    assert names[0] == names[1] != names[2]
    assert registry.ID.fullmatch(names[0])


def test_adding_twice_changes_nothing(
    three: tuple[Path, list[str]], encoder_folder: Path, tmp_path: Path
) -> None:
    folder, ids = three
    before = snapshot(folder)
    again = files(encoder_folder, tmp_path / "m1", 1)
    assert registry.add(folder, again, {"sources": ["other"]}) == ids[1]
    assert snapshot(folder) == before


def test_a_loaded_model_answers_as_the_saved_one(three: tuple[Path, list[str]]) -> None:
    folder, ids = three
    model = registry.load(folder, ids[2])
    assert model.id == ids[2]
    assert model.card["sources"] == ["s"]
    assert not model.encoder.training
    weight = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    x = np.eye(8, dtype=np.float32)
    want = np.exp(x @ weight.T / 2.0)
    want /= want.sum(1, keepdims=True)
    np.testing.assert_allclose(model.head.probabilities(x), want, rtol=1e-5)


@pytest.mark.parametrize("name", [*registry.CORE, "reference.parquet"])
def test_every_damaged_file_is_found(three: tuple[Path, list[str]], name: str) -> None:
    folder, ids = three
    file = folder / "models" / ids[0] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for act in (registry.load, registry.verify, lambda f, i: registry.promote(f, i, {})):
        with pytest.raises(HeadwaterError, match="does not match its checksum"):
            act(folder, ids[0])
    file.unlink()
    with pytest.raises(HeadwaterError, match="missing"):
        registry.load(folder, ids[0])
    assert registry.champion(folder) is None


def test_a_swapped_model_is_found_even_if_its_card_agrees(three: tuple[Path, list[str]]) -> None:
    folder, ids = three
    for file in (folder / "models" / ids[1]).iterdir():
        (folder / "models" / ids[0] / file.name).write_bytes(file.read_bytes())
    with pytest.raises(HeadwaterError, match="another model"):
        registry.verify(folder, ids[0])


@pytest.mark.parametrize("name", ["", "..", "../../x", "0" * 12, "zz"])
def test_what_is_no_model_is_refused_by_name(three: tuple[Path, list[str]], name: str) -> None:
    folder, ids = three
    with pytest.raises(HeadwaterError, match=min(ids)):
        registry.load(folder, name)


def test_promotion_and_rollback_walk_back_in_order(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, c) = three
    assert registry.champion(folder) is None
    for name in (a, b, c):
        registry.promote(folder, name, {"reason": "better"})
        assert registry.champion(folder) == name
    assert registry.lineage(folder) == [a, b, c]
    assert registry.rollback(folder, "slow") == b
    assert registry.rollback(folder, "wrong") == a
    assert registry.champion(folder) == a
    assert registry.rejected(folder) == {c: "slow", b: "wrong"}
    with pytest.raises(HeadwaterError, match="no champion before"):
        registry.rollback(folder, "again")
    assert registry.champion(folder) == a
    log = read_lines(folder / registry.LOG)
    assert [(e["event"], e["id"], e["previous"]) for e in log] == [
        ("promote", a, None),
        ("promote", b, a),
        ("promote", c, b),
        ("rollback", b, c),
        ("rollback", a, b),
    ]
    assert all(e["time"].endswith("+00:00") for e in log)
    assert {p.name for p in (folder / "models").iterdir()} == {a, b, c}  # nothing is deleted


def test_after_a_rollback_history_goes_on_from_there(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, c) = three
    for name in (a, b):
        registry.promote(folder, name, {})
    registry.rollback(folder, "bad")
    registry.promote(folder, c, {})
    registry.record(folder, "keep", b, {"previous": c})  # keeping changes no history
    assert registry.lineage(folder) == [a, c]
    assert registry.rollback(folder, "bad too") == a


def test_a_damaged_model_is_not_rolled_back_to(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, _) = three
    for name in (a, b):
        registry.promote(folder, name, {})
    (folder / "models" / a / _head.META).unlink()
    with pytest.raises(HeadwaterError, match="missing"):
        registry.rollback(folder, "x")
    assert registry.champion(folder) == b
    assert len(read_lines(folder / registry.LOG)) == 2


def test_an_empty_registry_cannot_roll_back(tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match="has no champion"):
        registry.rollback(tmp_path, "why not")


def test_a_crash_between_log_and_pointer_repeats_nothing(
    three: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (a, b, _) = three
    registry.promote(folder, a, {"reason": "first"})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(folder, b, {"reason": "second"})
    assert registry.champion(folder) == a
    registry.promote(folder, b, {"reason": "second"})
    assert registry.champion(folder) == b
    assert [e["id"] for e in read_lines(folder / registry.LOG)] == [a, b]
    assert registry.rollback(folder, "no") == a


def test_what_a_crash_left_is_finished_before_anything_else(
    three: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (a, b, _) = three
    registry.promote(folder, a, {})
    for act in (lambda: registry.promote(folder, b, {}), lambda: registry.rollback(folder, "x")):
        with monkeypatch.context() as patch:
            patch.setattr(registry, "write_json", lambda *_: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                act()
        (folder / ".log.jsonl.torn").write_text("half")
        assert registry.settle(folder) == registry.history(folder)[-1]["id"]
        assert not list(folder.glob(".*"))
    assert registry.champion(folder) == a
    assert registry.states(folder) == {a: "champion", b: "rejected"}


def test_a_decision_against_another_champion_is_refused(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, c) = three
    registry.promote(folder, a, {}, expected=None)
    registry.promote(folder, b, {}, expected=a)
    with pytest.raises(HeadwaterError, match="no longer the champion"):
        registry.promote(folder, c, {}, expected=a)
    assert registry.champion(folder) == b
    assert registry.rollback(folder, "bad", expected=b) == a
    assert registry.rollback(folder, "bad", expected=b) == a  # gone already: not two back
    with pytest.raises(HeadwaterError, match="does not return"):
        registry.promote(folder, b, {})


def test_states_follow_the_log(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, c) = three
    registry.promote(folder, a, {})
    seen = []
    for event in ("candidate", "approve", "shadow", "reject"):
        registry.record(folder, event, b, {"reason": event})
        seen.append(registry.states(folder)[b])
    assert seen == ["candidate", "approved", "shadow", "rejected"]
    registry.promote(folder, c, {})
    assert registry.states(folder) == {a: "retired", b: "rejected", c: "champion"}
    assert registry.rejected(folder) == {b: "reject"}


def test_the_pointer_before_its_log_line_can_be_rolled_back(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, c) = three
    for name in (a, b):
        registry.promote(folder, name, {})
    registry.write_json(folder / registry.CHAMPION, {"id": c})  # as if restored from elsewhere
    assert registry.rollback(folder, "unknown") == b


def test_the_same_record_is_not_made_twice(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, _) = three
    for difference in (0.01, 0.01, 0.02):
        registry.record(folder, "keep", b, {"previous": a, "difference": difference})
    assert [e["difference"] for e in read_lines(folder / registry.LOG)] == [0.01, 0.02]


def test_files_are_replaced_and_never_written_in_place(three: tuple[Path, list[str]]) -> None:
    """DVC may have linked them into its cache: writing into a link would change the cache."""
    folder, (a, b, _) = three
    registry.promote(folder, a, {})
    kept = {}
    for name in (registry.LOG, registry.CHAMPION):
        os.link(folder / name, folder / f"cache-{name}")
        kept[name] = (folder / name).read_bytes()
    registry.promote(folder, b, {})
    registry.rollback(folder, "x")
    for name, data in kept.items():
        assert (folder / f"cache-{name}").read_bytes() == data
    assert len(read_lines(folder / registry.LOG)) == 3


def test_a_torn_log_line_is_passed_over(three: tuple[Path, list[str]]) -> None:
    folder, (a, b, _) = three
    registry.promote(folder, a, {})
    with (folder / registry.LOG).open("a") as stream:
        stream.write('{"event": "prom')
    registry.promote(folder, b, {})
    assert [e["id"] for e in read_lines(folder / registry.LOG)] == [a, b]
    assert all(json.loads(x) for x in (folder / registry.LOG).read_text().splitlines())


def test_the_card_lists_every_file(three: tuple[Path, list[str]]) -> None:
    folder, ids = three
    card = read_json(folder / "models" / ids[0] / registry.CARD)
    here = {p.name for p in (folder / "models" / ids[0]).iterdir()}
    assert set(card["files"]) == here - {registry.CARD}
    assert card["id"] == ids[0]
