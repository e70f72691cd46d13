"""The suites labels, embeddings and shards: each planted fault breaks its rule; the history."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from ssl_core import shards as writer
from ssl_core.artifacts import read_json, read_lines, write_json
from ssl_core.config import Paths, Validate, load
from ssl_core.errors import HeadwaterError
from ssl_core.shards import Sample
from ssl_core.stages import _gate, _history, ingest, validate
from ssl_core.validation import _gx, embeddings, labels, shards
from ssl_core.validation._gx import CRITICAL, Outcome

LIMITS = Validate(min_classes=2, max_unlabelled_share=0.5, min_per_class=3)


def broken(outcomes: list[Outcome]) -> dict[str, str]:
    return {o.rule.name: o.rule.severity for o in outcomes if not o.success}


# ---- labels ------------------------------------------------------------------------------------


def labelled(**classes: int) -> pd.DataFrame:
    label = [name.replace("_", " ") for name, n in classes.items() for _ in range(n)]
    sha = [f"{i:064x}" for i in range(len(label))]
    return pd.DataFrame({"path": sha, "sha256": sha, "label": pd.Series(label, dtype="str")})


LABELS = [
    (labelled(cat=9, dog=2), "every class has at least 3 images", "dog"),
    (labelled(cat=9, nan=9), "no label stands for a missing one", "nan"),
    (labelled(cat=9, dog=9).replace("dog", "N/A"), "no label stands for a missing one", "N/A"),
    (labelled(cat=9, dog=9).replace("dog", "dog "), "labels are plain text", "dog "),
    (labelled(cat=9, dog=9).replace("dog", "d\x07g"), "labels are plain text", "d\x07g"),
    (labelled(Cat=9, cat=9), "labels differ in more than case and blanks", "Cat, cat"),
]


@pytest.mark.parametrize(("frame", "rule", "detail"), LABELS, ids=range(len(LABELS)))
def test_a_bad_label_warns(frame: pd.DataFrame, rule: str, detail: str) -> None:
    found = labels.judge(frame, LIMITS)
    assert broken(found) == {rule: "warning"}
    assert next(o.detail for o in found if not o.success) == detail


def test_good_labels_break_nothing() -> None:
    assert broken(labels.judge(labelled(cat=3, wild_dog=30, nanny=5), LIMITS)) == {}


def test_equal_images_with_two_labels_warn() -> None:
    frame = labelled(cat=5, dog=5)
    frame.loc[9, "sha256"] = frame["sha256"][0]
    assert broken(labels.judge(frame, LIMITS)) == {"equal images have equal labels": "warning"}


def test_without_any_label_only_the_limits_speak() -> None:
    frame = labelled(cat=5).assign(label=pd.Series([None] * 5, dtype="str"))
    free = Validate(min_classes=0, max_unlabelled_share=1.0)
    assert broken(labels.judge(frame, free)) == {}
    assert set(broken(labels.judge(frame, LIMITS)).values()) == {CRITICAL}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"cat": 200, "dog": 800}, {}),
        ({"cat": 400, "dog": 600}, {"at most 10.0% of": "warning"}),
        ({"cat": 990, "dog": 10}, {"at most 10.0% of": "warning", "less than 50.0% of": CRITICAL}),
    ],
)
def test_drift_of_class_shares(now: dict[str, int], expected: dict[str, str]) -> None:
    found = broken(labels.judge(labelled(**now), LIMITS, {"cat": 200, "dog": 800}))
    assert {k.partition(" the class")[0]: v for k, v in found.items()} == expected


def test_a_class_that_went_is_named() -> None:
    found = labels.judge(labelled(cat=500, dog=495), LIMITS, {"cat": 500, "dog": 495, "emu": 5})
    assert broken(found) == {"no class of the last accepted version is gone": "warning"}
    assert next(o.detail for o in found if not o.success) == "emu"


def test_chance_alone_is_no_drift() -> None:
    """The noise that is taken off is the mean total variation of two draws from equal shares."""
    rng, p = np.random.default_rng(0), np.array([0.5, 0.3, 0.15, 0.05])
    n, m, moved = 400, 700, []
    for _ in range(2000):
        a, b = rng.multinomial(n, p), rng.multinomial(m, p)
        moved.append(np.abs(a / n - b / m).sum() / 2)
    expected = np.sqrt(2 / np.pi * p * (1 - p) * (1 / n + 1 / m)).sum() / 2
    assert np.mean(moved) == pytest.approx(expected, rel=0.05)
    whole = {k: int(1000 * v) for k, v in zip("abcd", p, strict=True)}
    far = {"a": 1000, "b": 0, "c": 0, "d": 0}
    assert labels.drift(whole, whole) == 0
    q = (p + np.eye(4)[0]) / 2
    noise = np.sqrt(2 / np.pi * q * (1 - q) * 2 / 1000).sum() / 2
    assert labels.drift(whole, far) == pytest.approx(0.5 - noise)


# ---- embeddings --------------------------------------------------------------------------------


def features() -> np.ndarray:
    return load_digits().data[:60].astype(np.float32) + 1  # real images, no constant zero


KEYS = [f"{i:064x}" for i in range(60)]
Change = Callable[[np.ndarray], Any]


def planted(change: Change) -> np.ndarray:
    x = features()
    return x if (made := change(x)) is None else made


def put(rows: Any, value: Any) -> Change:
    def change(x: np.ndarray) -> None:
        x[rows] = value

    return change


HALF = np.s_[:, :40]
EMBEDDINGS: list[tuple[Change, dict[str, str]]] = [
    (put(7, np.nan), {"every value is finite": CRITICAL}),
    (put((3, 5), np.inf), {"every value is finite": CRITICAL}),
    (put(slice(None), 1), {"features are not all alike": CRITICAL}),
    (lambda x: x[:59], {"one row per image, in the order of the index": CRITICAL}),
    (lambda x: x[:, :60], {"64 dimensions, as the encoder has": CRITICAL}),
    (put(9, 1e-6), {"norms are within 30 times the median": "warning"}),
    (put(slice(8, 10), 2.0), {"different images have different features": "warning"}),
    (put(HALF, 5.0), {"at most 50% of dimensions are constant": "warning"}),
    (lambda x: np.outer(x[:, 20], x[1]), {"effective rank is at least 3": "warning"}),
]


@pytest.mark.parametrize(("change", "expected"), EMBEDDINGS, ids=range(len(EMBEDDINGS)))
def test_bad_features_break_their_rule(change: Change, expected: dict[str, str]) -> None:
    found = broken(embeddings.judge(planted(change), KEYS, KEYS, 64))
    for name, severity in expected.items():
        assert found.pop(name) == severity
    assert CRITICAL not in found.values()


def test_good_features_break_nothing() -> None:
    found = embeddings.judge(features(), KEYS, KEYS, 64)
    assert broken(found) == {}
    assert len(found) == 8
    assert broken(embeddings.judge(features(), KEYS, KEYS)) == {}


def test_rows_in_another_order_are_refused() -> None:
    found = broken(embeddings.judge(features(), KEYS[::-1], KEYS, 64))
    assert found == {"one row per image, in the order of the index": CRITICAL}


def test_copies_of_one_content_may_have_equal_features() -> None:
    x, keys = features(), KEYS.copy()
    x[9], keys[9] = x[8], keys[8]
    assert broken(embeddings.judge(x, keys, keys, 64)) == {}


def test_effective_rank_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    turn -= turn.mean(axis=0)
    size = np.array([4.0, 2.0, 1.0, 1.0])
    u = np.linalg.qr(turn[:, :4])[0]  # centred, orthonormal
    x = (u * size) @ np.linalg.qr(rng.normal(size=(9, 4)))[0].T
    p = size / size.sum()
    assert embeddings.rank(x) == pytest.approx(float(np.prod(p**-p)), rel=1e-6)
    assert embeddings.rank(np.ones((5, 3), np.float32)) == 0


def test_blocks_give_the_moments_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "CHUNK", 7)
    x = planted(put(7, np.nan))
    sound = np.arange(60) != 7
    about, length = embeddings.moments(x, sound)
    rows = x[sound].astype(np.float64)
    np.testing.assert_allclose(about, rows.std(axis=0), rtol=1e-12)
    assert length == pytest.approx(np.sqrt((rows**2).sum(axis=1).mean()))
    (row,) = embeddings.as_whole(x, KEYS, KEYS).to_dict("records")
    assert row["spread"] == pytest.approx(np.sqrt(rows.var(axis=0).sum()) / length)
    assert row["rank"] == pytest.approx(embeddings.rank(x[sound]))
    nothing = embeddings.as_whole(np.full((3, 2), np.nan, np.float32), KEYS[:3], KEYS[:3])
    assert nothing["spread"].item() == 0


# ---- shards ------------------------------------------------------------------------------------


def sample(number: int) -> Sample:
    pixels = load_digits().images[number].astype(np.uint8).tobytes() * 9
    key = hashlib.sha256(pixels + bytes([number])).hexdigest()
    split = "test" if number < 10 else "train"
    return Sample(split, key, "bin", pixels, "a", f"g{number // 2}", "s")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Forty images in several shards."""
    folder, samples = tmp_path_factory.mktemp("shards"), [sample(i) for i in range(40)]
    writer.write(folder, samples, 16384, 32)
    assert len(list(folder.glob("*.tar"))) > 3
    return folder, [s.key for s in samples]


@pytest.fixture
def stored(written: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy to damage."""
    shutil.copytree(written[0], tmp_path / "shards")
    return tmp_path / "shards", written[1]


def test_good_shards_break_nothing(stored: tuple[Path, list[str]]) -> None:
    folder, keys = stored
    found = shards.judge(folder, keys)
    assert broken(found) == {}
    assert len(found) == 10


def reindex(folder: Path, change: Callable[[pd.DataFrame], Any]) -> None:
    """Another index with a checksum that fits it."""
    frame = pd.read_parquet(folder / "index.parquet")
    made = change(frame)
    (frame if made is None else made).to_parquet(folder / "index.parquet", index=False)
    about = read_json(folder / "index.json")
    digest = hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
    write_json(folder / "index.json", about | {"index.parquet": digest})


def damage(folder: Path, where: int) -> None:
    file = folder / "train-000000.tar"
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(bytes(data))


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def moved(frame: pd.DataFrame) -> None:
    frame.loc[12, "offset"] += 512


def straddling(frame: pd.DataFrame) -> None:
    frame.loc[39, "group"] = frame["group"][0]


def doubled(frame: pd.DataFrame) -> None:
    for column in ("key", "shard", "split", "offset"):
        frame.loc[13, column] = frame[column][12]


ONCE, THERE = "every image is stored once", "every image lies where the index says"
COUNT = "shards hold as many images as recorded"
SHA, SIZE = "shards match their sha256", "shards have their recorded size"
MISSING = "no kept image is missing from the index"
SHARDS: list[tuple[Callable[[Path], Any], set[str]]] = [
    (lambda f: damage(f, 700), {SHA}),
    (lambda f: damage(f, 100), {SHA, THERE}),  # in a header: its own checksum fails
    (lambda f: (f / "train-000001.tar").unlink(), {SHA, SIZE, THERE}),
    (lambda f: longer(f / "train-000000.tar"), {SHA, SIZE}),
    (lambda f: (f / "stray.tar").write_bytes(b""), {SHA, SIZE, COUNT}),
    (lambda f: reindex(f, moved), {THERE}),
    (lambda f: reindex(f, straddling), {"no group is on both sides of the split"}),
    (lambda f: reindex(f, doubled), {ONCE, MISSING, COUNT}),
    (lambda f: reindex(f, lambda frame: frame[1:]), {MISSING, COUNT}),
    (lambda f: write_json(f / "index.json", read_json(f / "index.json") | {"index.parquet": ""}),
     {"the index matches its sha256"}),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "expected"), SHARDS, ids=range(len(SHARDS)))
def test_bad_shards_break_their_rule(
    stored: tuple[Path, list[str]], fault: Callable[[Path], Any], expected: set[str]
) -> None:
    folder, keys = stored
    fault(folder)
    assert broken(shards.judge(folder, keys)) == dict.fromkeys(expected, CRITICAL)


def test_images_that_were_not_kept_are_surplus(stored: tuple[Path, list[str]]) -> None:
    folder, keys = stored
    assert set(broken(shards.judge(folder, keys[1:]))) == {"no other image is in the index"}


# ---- the gate and the history ------------------------------------------------------------------


def test_an_unsound_product_stops_the_next_stage(tmp_path: Path) -> None:
    _gate.require_sound(tmp_path, "shard")  # made by other means: no record
    good = embeddings.judge(features(), KEYS, KEYS)
    assert _gx.write(tmp_path, good) == {"failed": 0, "warnings": 0}
    _gate.require_sound(tmp_path, "shard")
    bad = embeddings.judge(planted(put(7, np.nan)), KEYS, KEYS)
    assert _gx.write(tmp_path, bad)["failed"] == 1
    with pytest.raises(HeadwaterError, match=r"every value is finite.*run stage embed again"):
        _gate.require_sound(tmp_path, "embed")


def test_the_last_success_before_a_content_was_first_seen_is_what_it_is_compared_with(
    tmp_path: Path,
) -> None:
    file = tmp_path / "h.jsonl"
    assert _history.accepted(file, "a") == {}
    for content, success in (("a", True), ("b", False), ("b", False), ("c", True), ("b", True)):
        _history.remember(file, {"content": content, "success": success})
    assert [r["content"] for r in read_lines(file)] == ["a", "b", "c", "b"]  # no line twice
    before = {c: _history.accepted(file, c).get("content") for c in "abcd"}
    assert before == {"a": None, "b": "a", "c": "a", "d": "b"}


def test_class_shares_are_compared_with_the_last_accepted_version(project: Path) -> None:
    cfg, paths = load(project / "params.yaml"), Paths(project)
    ingest.run(cfg, paths)
    assert validate.run(cfg, paths)["warnings"] == 0
    flower = project / "images/flower"
    flower.rename(project / "images/rose")  # a class under another name
    ingest.run(cfg, paths)
    found = validate.run(cfg, paths)
    assert (found["failed"], found["warnings"]) == (0, 2)  # less than half of the images
    tight = load(project / "params.yaml", {"validate.max_class_drift": 0.2})
    assert validate.run(tight, paths)["failed"] == 1
    with pytest.raises(HeadwaterError, match=r"less than 20.0% of the class shares moved"):
        _gate.require_valid(paths)
    lines = read_lines(paths.history)
    assert [r["success"] for r in lines] == [True, True, False]
    assert lines[0]["classes"].keys() == {"flower", "temple"}
    assert "no class of the last accepted version is gone" in lines[1]["broken"]
