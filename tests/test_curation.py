"""Curation: planted duplicates, water-filling against brute force, the split as data grows."""

from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from ssl_core import plugins
from ssl_core.artifacts import read_json, write_json
from ssl_core.config import Config, Curate, Paths
from ssl_core.curation import _cells, _copies, _share, _union, _vectors, balance, exact, near
from ssl_core.errors import HeadwaterError
from ssl_core.stages import curate

NO_FEATURES = np.zeros((0, 4), dtype=np.float32)
TIGHT = Curate(near_cosine=0.985, near_hamming=6)  # the defaults are for the seed encoder


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A curated frame before any step; what a row leaves out gets a plain default."""
    base: dict[str, Any] = {
        "label": None,
        "source": "s",
        "width": 8,
        "height": 8,
        "phash": "0" * 16,
        "format": "PNG",
        "dup_group": -1,
        "dup_of": None,
        "cluster": -1,
        "split": "train",
        "keep": True,
        "reason": "",
        "detail": "",
    }
    made = []
    for i, row in enumerate(rows):
        sha = row.get("sha256", hashlib.sha256(str(i).encode()).hexdigest())
        own = {"path": f"p{i:04d}", "sha256": sha, "group": row.get("path", sha)}
        made.append(base | own | row)
    return pd.DataFrame(made).astype({"label": "str", "dup_of": "str"})


# ---- graph -------------------------------------------------------------------------------------


def brute_components(count: int, pairs: np.ndarray) -> list[int]:
    names = list(range(count))
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            least = min(names[a], names[b])
            changed |= names[a] != least or names[b] != least
            names[a] = names[b] = least
    return names


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_repeated_relabelling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 40, (25, 2))
    assert _union.components(40, pairs).tolist() == brute_components(40, pairs)


def test_components_of_no_pairs_and_of_a_chain() -> None:
    assert _union.components(3, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1, 2]
    chain = np.array([[4, 3], [3, 2], [1, 2]])
    assert _union.components(5, chain).tolist() == [0, 1, 1, 1, 1]


def test_equal_values_are_chained_and_nulls_are_not() -> None:
    pairs = _union.same(pd.Series(["a", None, "b", "a", None, "a"]))
    assert sorted(map(tuple, pairs.tolist())) == [(0, 3), (3, 5)]


# ---- exact -------------------------------------------------------------------------------------


def test_exact_keeps_the_labelled_copy_and_ignores_rows_already_out() -> None:
    frame = frame_of(
        [
            {"sha256": "a", "path": "0"},
            {"sha256": "a", "path": "2", "label": "cat"},
            {"sha256": "b", "path": "3"},
            {"sha256": "b", "path": "4", "keep": False, "reason": "quarantine"},
            {"sha256": "a", "path": "1", "label": "dog"},
        ]
    )
    out = exact.apply(frame, NO_FEATURES, Curate(), 0)
    assert out["keep"].tolist() == [False, False, True, False, True]
    assert out["reason"].tolist() == ["duplicate-exact"] * 2 + ["", "quarantine", ""]
    assert out["dup_group"].tolist() == [0, 0, -1, -1, 0]
    assert out.loc[[0, 1], "dup_of"].tolist() == ["a", "a"]
    assert out.loc[[2, 3, 4], "dup_of"].isna().all()
    assert frame["keep"].tolist() == [True, True, True, False, True]  # the argument is not touched


# ---- near --------------------------------------------------------------------------------------


def drawing(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = rng.integers(4, 70, 4)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([x, y, x + 8 + w // 2, y + 8 + h // 2], fill=colour)
    return image


def copies(image: Image.Image) -> list[Image.Image]:
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=60)
    return [image.resize((64, 64)), Image.open(jpeg).convert("RGB").resize((110, 110))]


def described(images: list[Image.Image]) -> tuple[pd.DataFrame, np.ndarray]:
    """Frame and features: centred 12 x 12 thumbnails stand for the seed encoder."""
    rows = [
        {
            "width": i.width,
            "height": i.height,
            "phash": str(imagehash.phash(i)),
            "sha256": hashlib.sha256(i.tobytes()).hexdigest(),
        }
        for i in images
    ]
    small = [np.asarray(i.resize((12, 12), Image.Resampling.BOX), dtype=np.float32) for i in images]
    return frame_of(rows), np.stack(small).reshape(len(images), -1) / 255 - 0.7


@pytest.fixture(scope="module")
def planted() -> tuple[pd.DataFrame, np.ndarray, list[int]]:
    """40 drawings; every third has two planted copies. truth[i] is the drawing of image i."""
    rng = np.random.default_rng(5)
    images, truth = [], []
    for i in range(40):
        image = drawing(rng)
        family = [image, *copies(image)] if i % 3 == 0 else [image]
        images += family
        truth += [i] * len(family)
    order = rng.permutation(len(images))
    frame, features = described([images[i] for i in order])
    return frame, features, [truth[i] for i in order]


def test_planted_copies_are_found_and_only_they(
    planted: tuple[pd.DataFrame, np.ndarray, list[int]],
) -> None:
    frame, features, truth = planted
    out = near.apply(frame, features, TIGHT, 0)
    kept = out[out["keep"]]
    assert len(kept) == 40
    assert sorted(truth[i] for i in kept.index) == list(range(40))
    assert (kept.loc[kept["dup_group"] >= 0, "width"] == 110).all()  # the largest of each family
    family = pd.Series(truth)
    lost = out[~out["keep"]]
    assert (lost["reason"] == "duplicate-near").all()
    position = {s: i for i, s in enumerate(out["sha256"])}
    for i, winner in lost["dup_of"].items():
        assert family[i] == family[position[winner]]
        assert out["keep"].iloc[position[winner]]


def test_pairs_equal_brute_force_and_cells_miss_little(
    planted: tuple[pd.DataFrame, np.ndarray, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, features, _ = planted
    limits = _copies.Limits(0.9, 16, 1.1, 1.1)  # loose, so that both matter; pixels do not
    unit = _vectors.normalise(features)
    bits = _vectors.phash_bits(frame["phash"])
    rows = _copies.Rows(unit, bits, np.full(len(bits), -1))
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(len(frame)), 2)
        if features[i] @ features[j]
        >= 0.9 * np.linalg.norm(features[i]) * np.linalg.norm(features[j])
        and (int(frame["phash"][i], 16) ^ int(frame["phash"][j], 16)).bit_count() <= 16
    }
    monkeypatch.setattr(_copies, "BLOCK", 7)
    monkeypatch.setattr(_copies, "forest", lambda pairs: pairs)
    assert {tuple(p) for p in _copies.find(rows, limits, None, 0).tolist()} == expected
    assert 26 <= len(expected) < 500
    monkeypatch.setattr(_cells, "EXACT_UP_TO", 10)
    monkeypatch.setattr(_cells, "CELL", 20)
    found = {tuple(p) for p in _copies.find(rows, limits, None, 0).tolist()}
    assert found <= expected
    assert len(found) > 0.95 * len(expected)


def test_both_witnesses_must_agree() -> None:
    layout = ["00ff00ff00ff00ff", "00ff00ff00ff00ff", "ffff0000ffff0000"]
    frame = frame_of([{"phash": p} for p in layout])
    features = np.array([[1, 0, 0], [0, 1, 0], [1, 0.01, 0]], dtype=np.float32)
    assert near.apply(frame, features, TIGHT, 0)["keep"].all()
    both = near.apply(frame.assign(phash=layout[0]), features, TIGHT, 0)
    assert both["keep"].sum() == 2


def test_the_limits_belong_to_the_duplicates() -> None:
    same = np.array([[1, 0], [1, 0]], dtype=np.float32)
    for bits, dropped in ((6, 1), (7, 0)):
        frame = frame_of([{"phash": "0" * 16}, {"phash": f"{2**bits - 1:016x}"}])
        assert (~near.apply(frame, same, TIGHT, 0)["keep"]).sum() == dropped
    exactly = TIGHT.model_copy(update={"near_cosine": 1.0})
    assert near.apply(frame_of([{}, {}]), same, exactly, 0)["keep"].sum() == 1


def test_a_label_outweighs_the_hash_but_not_size() -> None:
    features = np.ones((3, 2), dtype=np.float32)
    rows: list[dict[str, Any]] = [{"sha256": "a"}, {"sha256": "b", "label": "x"}, {"sha256": "c"}]
    kept = near.apply(frame_of(rows), features, TIGHT, 0)["keep"]
    assert kept.tolist() == [False, True, False]
    rows[2]["height"] = 9
    kept = near.apply(frame_of(rows), features, TIGHT, 0)["keep"]
    assert kept.tolist() == [False, False, True]


def test_a_chain_is_one_group_and_the_order_of_rows_does_not_choose() -> None:
    angles = np.deg2rad([0, 8, 16, 90])  # neighbours have cosine 0.990, the ends 0.961
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    frame = frame_of([{"width": w} for w in (8, 8, 9, 8)])
    survivors = set()
    for order in itertools.permutations(range(4)):
        shuffled = frame.iloc[list(order)].reset_index(drop=True)
        out = near.apply(shuffled, features[list(order)], TIGHT, 0)
        survivors.add(tuple(sorted(out.loc[out["keep"], "path"])))
    assert survivors == {("p0002", "p0003")}


def test_an_exact_copy_follows_its_group_to_the_near_winner() -> None:
    frame = frame_of([{"sha256": "a"}, {"sha256": "a"}, {"sha256": "b", "width": 99}])
    features = np.ones((3, 2), dtype=np.float32)
    out = near.apply(exact.apply(frame, features, TIGHT, 0), features, TIGHT, 0)
    assert out["reason"].tolist() == ["duplicate-near", "duplicate-exact", ""]
    assert out["dup_of"].tolist()[:2] == ["b", "b"]
    assert (out["dup_group"] == 0).all()


def test_equal_features_are_found_beyond_any_number_of_neighbours() -> None:
    frame = frame_of([{} for _ in range(1500)])
    out = near.apply(frame, np.ones((1500, 2), dtype=np.float32), TIGHT, 0)
    assert out["keep"].sum() == 1


# ---- balance -----------------------------------------------------------------------------------


def brute_fill(sizes: np.ndarray, target: int) -> list[int]:
    """Take one image at a time from whichever cluster is largest; sorted heights are unique."""
    left = sizes.copy()
    while left.sum() > target:
        left[left.argmax()] -= 1
    return sorted(left.tolist())


@pytest.mark.parametrize("seed", range(30))
def test_water_filling_is_cutting_the_largest_again_and_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 20, rng.integers(1, 9))
    for target in range(int(sizes.sum()) + 1):
        kept = _share.water_fill(sizes, target, rng)
        assert kept.sum() == target
        assert (kept <= sizes).all()
        assert sorted(kept.tolist()) == brute_fill(sizes, target)
    assert (_share.water_fill(sizes, 10**6, rng) == sizes).all()


def test_the_remainder_is_shared_by_chance_and_by_seed() -> None:
    sizes = np.array([9, 9, 9, 1])
    results = [
        tuple(_share.water_fill(sizes, 11, np.random.default_rng(s)).tolist()) for s in range(40)
    ]
    assert set(results) == {(4, 3, 3, 1), (3, 4, 3, 1), (3, 3, 4, 1)}
    assert results[7] == tuple(_share.water_fill(sizes, 11, np.random.default_rng(7)).tolist())


def blobs(sizes: tuple[int, ...], seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.eye(len(sizes), 8) * 10
    features = np.concatenate(
        [c + rng.normal(0, 0.3, (n, 8)) for c, n in zip(centres, sizes, strict=True)]
    ).astype(np.float32)
    source = np.repeat([f"blob {i}" for i in range(len(sizes))], sizes)
    return frame_of([{"source": s} for s in source]), features


def test_balance_cuts_the_large_clusters_first_and_leaves_the_test_side() -> None:
    frame, features = blobs((200, 30, 10))
    frame.loc[::4, "split"] = "test"
    frame.loc[1, ["keep", "reason"]] = [False, "duplicate-near"]
    pool = frame[(frame["split"] == "train") & frame["keep"]]
    out = balance.apply(frame, features, Curate(clusters=3, keep=0.5), 0)
    assert out.loc[out["split"] == "test", "keep"].all()
    assert out.groupby("source")["cluster"].nunique().tolist() == [1, 1, 1]
    assert out["cluster"].nunique() == 3
    kept = out[(out["split"] == "train") & out["keep"]]
    assert len(kept) == round(0.5 * len(pool))
    before, after = pool["source"].value_counts(), kept["source"].value_counts()
    assert after["blob 1"] == before["blob 1"]
    assert after["blob 2"] == before["blob 2"]
    assert (out.loc[pool.index.difference(kept.index), "reason"] == "balance").all()
    assert out.loc[1, "reason"] == "duplicate-near"


def test_test_images_do_not_shape_the_clusters() -> None:
    frame, features = blobs((40, 40, 300))
    frame.loc[80:, "split"] = "test"
    cfg = Curate(clusters=2, keep=0.5)
    out = balance.apply(frame, features, cfg, 0)
    alone = balance.apply(frame[:80], features[:80], cfg, 0)
    assert out["cluster"][:80].tolist() == alone["cluster"].tolist()
    assert alone["cluster"].nunique() == 2
    assert (out["keep"][:80] == alone["keep"]).all()


def test_balance_does_not_depend_on_row_order_and_does_on_seed() -> None:
    frame, features = blobs((80, 20))
    cfg = Curate(clusters=2, keep=0.4)
    first = balance.apply(frame, features, cfg, 0)
    assert first.equals(balance.apply(frame, features, cfg, 0))
    order = np.random.default_rng(1).permutation(len(frame))
    shuffled = balance.apply(frame.iloc[order].reset_index(drop=True), features[order], cfg, 0)
    assert set(first.loc[first["keep"], "path"]) == set(shuffled.loc[shuffled["keep"], "path"])
    other = balance.apply(frame, features, cfg, 1)
    assert set(first.loc[first["keep"], "path"]) != set(other.loc[other["keep"], "path"])
    assert balance.apply(frame, features, Curate(clusters=64, keep=1.0), 0)["keep"].all()


def test_balance_makes_a_lopsided_mixture_flatter_than_chance() -> None:
    frame, features = blobs((1000, 10, 10, 10))
    out = balance.apply(frame, features, Curate(clusters=24, keep=0.2), 0)
    share = (out.loc[out["keep"], "source"] != "blob 0").mean()
    assert share > 3 * 30 / 1030  # a random choice keeps the share of 30 in 1030


# ---- the split ---------------------------------------------------------------------------------


def many(count: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = frame_of([{} for _ in range(count)])
    frame["group"] = [f"group {g}" for g in rng.integers(0, count // 2, count)]
    copied = rng.integers(0, count, count // 10)
    frame.loc[copied, "dup_group"] = copied // 7  # some unions reach over groups
    return frame


def test_nothing_straddles_the_split_and_the_share_is_right() -> None:
    frame = many(4000)
    frame["split"] = _union.assign_split(frame, 0.25)
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    grouped = frame[frame["dup_group"] >= 0].groupby("dup_group")
    assert (grouped["split"].nunique() == 1).all()
    assert (grouped["group"].nunique() > 1).any()
    assert abs((frame["split"] == "test").mean() - 0.25) < 0.04


def test_equal_bytes_stay_together_even_without_the_exact_step() -> None:
    frame = frame_of([{"sha256": f"s{i % 50}", "group": f"g{i}"} for i in range(100)])
    frame["split"] = _union.assign_split(frame, 0.5)
    assert (frame.groupby("sha256")["split"].nunique() == 1).all()
    assert frame["split"].nunique() == 2


def test_the_split_of_old_images_survives_growth_and_shuffling() -> None:
    old = many(1000)
    sides = dict(zip(old["path"], _union.assign_split(old, 0.25), strict=True))
    new = many(600, seed=1).assign(dup_group=-1)
    new["path"], new["sha256"] = "new" + new["path"], "new" + new["sha256"]
    new.loc[::2, "group"] = "fresh " + new.loc[::2, "group"]  # the rest join old groups
    grown = pd.concat([old, new]).sample(frac=1, random_state=0).reset_index(drop=True)
    after = dict(zip(grown["path"], _union.assign_split(grown, 0.25), strict=True))
    assert {p: after[p] for p in sides} == sides


def test_the_least_group_of_a_union_tosses_its_coin() -> None:
    sides = {_union.is_test(f"g{i}", 0.5) for i in range(10)}
    assert sides == {True, False}
    for a, b in itertools.permutations([f"g{i}" for i in range(10)], 2):
        frame = frame_of([{"group": a, "dup_group": 0}, {"group": b, "dup_group": 0}])
        expected = "test" if _union.is_test(min(a, b), 0.5) else "train"
        assert _union.assign_split(frame, 0.5) == [expected] * 2


def test_a_larger_fraction_only_adds_to_the_test_side() -> None:
    frame = many(500)
    nested = [
        {
            p
            for p, s in zip(frame["path"], _union.assign_split(frame, f), strict=True)
            if s == "test"
        }
        for f in (0.1, 0.3, 0.6)
    ]
    assert nested[0] < nested[1] < nested[2]


def test_the_coin_is_the_documented_hash() -> None:
    value = int.from_bytes(hashlib.sha256(b"split:cat").digest(), "big") % 10**6 / 10**6
    assert _union.is_test("cat", value + 1e-9)
    assert not _union.is_test("cat", value)


# ---- the stage ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Paths:
    """Products of the stages before curate: 60 images, two equal files, one quarantined."""
    paths = Paths(tmp_path)
    frame, features = blobs((30, 20, 10))
    bits = np.random.default_rng(2).integers(0, 2**63, 60)  # unlike each other
    manifest = frame[["sha256", "path", "source", "label", "group", "width", "height", "format"]]
    manifest = manifest.assign(phash=[f"{b:016x}" for b in bits], label="cat")
    manifest.loc[1, ["sha256", "label"]] = [manifest.loc[0, "sha256"], "dog"]
    manifest.loc[7, "sha256"] = manifest.loc[5, "sha256"]  # 5 is quarantined, its copy is not
    for folder in (paths.manifest, paths.validation, paths.seed_embeddings):
        folder.mkdir(parents=True)
        write_json(folder / "lineage.json", {})
    manifest.to_parquet(paths.manifest / "manifest.parquet", index=False)
    manifest.iloc[[5]].to_parquet(paths.validation / "quarantine.parquet", index=False)
    report = {"success": True, "expectations": [], "issues": {}}
    write_json(paths.validation / "report.json", report)
    np.save(paths.seed_embeddings / "embeddings.npy", features)
    return paths


def test_the_stage_accounts_for_every_image(project: Paths) -> None:
    cfg = Config(curate=Curate(clusters=4, keep=0.8))
    counts = curate.run(cfg, project)
    frame = pd.read_parquet(project.curated / "curated.parquet")
    summary = read_json(project.curated / "summary.json")
    assert len(frame) == 60 == counts["images"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"]["duplicate-exact"] == 1
    assert counts["dropped"]["quarantine"] == 1
    assert counts["label_conflicts"] == 1
    assert frame.loc[5, "reason"] == "quarantine"
    assert set(frame["reason"]) == {"", "balance", "duplicate-exact", "quarantine"}
    assert ((frame["reason"] == "") == frame["keep"]).all()
    pool = frame[(frame["split"] == "train") & frame["reason"].isin(["", "balance"])]
    assert counts["train"] == round(0.8 * len(pool))
    assert sum(summary["clusters"]["before"].values()) == len(pool)
    assert sum(summary["clusters"]["after"].values()) == counts["train"]
    assert summary["classes"]["before"] == {"cat": 59, "dog": 1}
    first = (project.curated / "curated.parquet").read_bytes()
    assert curate.run(cfg, project) == counts
    assert (project.curated / "curated.parquet").read_bytes() == first


def test_the_stage_refuses_data_that_failed_validation(project: Paths) -> None:
    expectations = [
        {"name": "enough images", "success": False, "severity": "critical"},
        {"name": "few dark images", "success": False, "severity": "warning"},
    ]
    failed = {"success": False, "expectations": expectations, "issues": {}}
    write_json(project.validation / "report.json", failed)
    with pytest.raises(HeadwaterError, match=r"^enough images: failed"):
        curate.run(Config(), project)
    assert not project.curated.exists()


def test_the_stage_refuses_features_of_another_manifest(project: Paths) -> None:
    np.save(project.seed_embeddings / "embeddings.npy", np.ones((59, 8), dtype=np.float32))
    with pytest.raises(HeadwaterError, match="has 59 rows, the manifest 60"):
        curate.run(Config(), project)


def test_steps_in_an_order_that_breaks_the_split_are_refused(project: Paths) -> None:
    with pytest.raises(HeadwaterError, match="put 'balance' last"):
        curate.run(Config(curate=Curate(steps=("balance", "near"))), project)
    with pytest.raises(HeadwaterError, match="did you mean 'exact'"):
        curate.run(Config(curate=Curate(steps=("exakt",))), project)


def test_a_split_with_an_empty_side_is_refused(project: Paths) -> None:
    cfg = Config.model_validate({"data": {"test_fraction": 1e-9}})
    with pytest.raises(HeadwaterError, match="split 'test': holds no image"):
        curate.run(cfg, project)


# ---- the table: every step has a row -----------------------------------------------------------

TABLE: dict[str, dict[str, Any]] = {
    "balance": {"clusters": 3, "keep": 0.5},
    "exact": {},
    "hierarchical": {"hierarchy": {"levels": [8, 2]}, "keep": 0.5},
    "leak": {},
    "near": {},
    "retrieval": {"retrieval": {"trusted": ["source=blob 2"], "neighbours": 2}},
    "semantic": {"semantic": {"keep": 0.6}},
    "temperature": {"clusters": 3, "keep": 0.5, "temperature": 3},
}
SPLITS_FIRST = {"balance", "hierarchical", "leak", "retrieval", "semantic", "temperature"}


def test_the_steps_are_these() -> None:
    assert plugins.names("curation") == sorted(TABLE)


def mixed() -> tuple[pd.DataFrame, np.ndarray]:
    """Blobs with pHashes in groups, some equal bytes, some rows out already, both splits."""
    frame, features = blobs((80, 30, 20))
    rng = np.random.default_rng(4)
    frame["phash"] = [f"{b:016x}" for b in rng.integers(0, 2**63, 26).repeat(5)]
    frame.loc[1, "sha256"] = frame.loc[0, "sha256"]
    frame.loc[::4, "split"] = "test"
    frame.loc[[10, 50], ["keep", "reason"]] = [False, "quarantine"]
    return frame, features


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_step_drops_with_a_reason_by_seed_and_content_alone(name: str) -> None:
    step, cfg = plugins.load("curation", name), Curate.model_validate(TABLE[name])
    frame, features = mixed()
    before = frame.copy()
    out = step.apply(frame, features, cfg, 0)
    assert frame.equals(before)
    assert out.equals(step.apply(frame, features, cfg, 0))
    assert out["path"].tolist() == frame["path"].tolist()

    lost = frame["keep"] & ~out["keep"]
    assert 0 < lost.sum() < frame["keep"].sum()
    assert out.loc[lost, "reason"].str.contains(name).all()
    assert not out.loc[~frame["keep"], "keep"].any()
    assert (out.loc[~frame["keep"], "reason"] == "quarantine").all()
    assert (out.loc[out["keep"], "reason"] == "").all()
    assert getattr(step, "NEEDS_SPLIT", False) == (name in SPLITS_FIRST)
    if name in SPLITS_FIRST:  # only training images are cut, and told why
        assert (out.loc[lost, "split"] == "train").all()
        assert (out.loc[lost, "detail"] != "").all()
        assert out["split"].equals(frame["split"])
    if name in {"exact", "leak", "near", "semantic"}:  # for one that stays
        assert out.set_index("sha256").loc[out.loc[lost, "dup_of"], "keep"].any()


@pytest.mark.parametrize("name", ["exact", "leak", "near"])  # k-means starts from some rows
def test_the_order_of_rows_decides_nothing(name: str) -> None:
    step, cfg = plugins.load("curation", name), Curate.model_validate(TABLE[name])
    frame, features = mixed()
    order = np.random.default_rng(1).permutation(len(frame))
    shuffled = frame.iloc[order].reset_index(drop=True)
    one, two = step.apply(frame, features, cfg, 0), step.apply(shuffled, features[order], cfg, 0)
    assert set(one.loc[one["keep"], "path"]) == set(two.loc[two["keep"], "path"])
