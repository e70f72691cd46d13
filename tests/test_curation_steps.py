"""Semantic duplicates, hierarchy, temperature and retrieval against references from the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from sklearn.cluster import KMeans
from test_curation import blobs, brute_fill, frame_of

from ssl_core.config import Curate, Hierarchy
from ssl_core.curation import _share, _vectors, hierarchical, retrieval, semantic, temperature
from ssl_core.errors import HeadwaterError


def settings(**values: Any) -> Curate:
    return Curate.model_validate(values)


def cloud(count: int, seed: int = 0, width: int = 6) -> tuple[pd.DataFrame, np.ndarray]:
    """Unit vectors around a few directions, so that cosines of all sizes occur."""
    rng = np.random.default_rng(seed)
    features = np.eye(4, width)[rng.integers(0, 4, count)] + rng.normal(0, 0.25, (count, width))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return frame_of([{} for _ in range(count)]), unit.astype(np.float32)


# ---- semantic ----------------------------------------------------------------------------------


def semdedup(unit: np.ndarray, order: list[int], epsilon: float) -> set[int]:
    """Algorithm A7 of the paper, for one cluster, in float64: what is kept."""
    x = unit.astype(np.float64)
    kept = set()
    for place, j in enumerate(order):
        if all(x[i] @ x[j] <= 1 - epsilon for i in order[:place]):
            kept.add(j)
    return kept


def one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean(unit: np.ndarray, size: int, homes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        centre = unit.mean(axis=0, keepdims=True)
        return np.zeros((len(unit), 1), dtype=np.int64), centre / np.linalg.norm(centre)

    monkeypatch.setattr(semantic, "partition", mean)


@pytest.mark.parametrize("prefer", ["hard", "easy"])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.15])
def test_one_cluster_is_the_papers_algorithm(
    prefer: str, epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_cluster(monkeypatch)
    monkeypatch.setattr(semantic, "BLOCK", 7)
    frame, unit = cloud(120)
    cfg = settings(semantic={"epsilon": epsilon, "prefer": prefer})
    out = semantic.apply(frame, unit, cfg, 0)
    to_centre = unit.astype(np.float64) @ unit.mean(axis=0).astype(np.float64)
    order = np.argsort(to_centre if prefer == "hard" else -to_centre).tolist()
    assert set(np.flatnonzero(out["keep"])) == semdedup(unit, order, epsilon)
    assert out["keep"].sum() < 120
    lost = out[~out["keep"]]
    assert (lost["reason"] == "semantic").all()
    assert out.set_index("sha256").loc[lost["dup_of"], "keep"].all()


@pytest.mark.parametrize("prefer", ["hard", "easy", "random"])
def test_of_equal_images_one_survives_even_at_epsilon_0(prefer: str) -> None:
    rng = np.random.default_rng(1)
    unit = np.repeat(rng.normal(size=(30, 5)), 4, axis=0).astype(np.float32)
    frame = frame_of([{} for _ in range(120)])
    cfg = settings(semantic={"epsilon": 0.0, "prefer": prefer})
    out = semantic.apply(frame, unit, cfg, 0)
    assert out["keep"].to_numpy().reshape(30, 4).sum(axis=1).tolist() == [1] * 30


def test_what_a_large_epsilon_keeps_a_small_one_keeps_too() -> None:
    frame, unit = cloud(300)
    kept = [
        set(np.flatnonzero(semantic.apply(frame, unit, settings(semantic=s), 0)["keep"]))
        for s in ({"epsilon": 0.02}, {"epsilon": 0.1}, {"epsilon": 0.3}, {"keep": 0.05})
    ]
    assert kept[0] > kept[1] > kept[2] > set()
    for share in (0.2, 0.5, 0.9):
        out = semantic.apply(frame, unit, settings(semantic={"keep": share}), 0)
        assert out["keep"].sum() == round(share * 300)
    half = semantic.apply(frame, unit, settings(semantic={"keep": 0.5}), 0)["keep"]
    assert set(np.flatnonzero(half)) >= kept[2] or set(np.flatnonzero(half)) <= kept[2]


def test_clusters_are_not_compared_and_the_test_split_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = frame_of([{"split": s} for s in ("train", "train", "train", "test", "test")])
    unit = np.ones((5, 3), dtype=np.float32)
    two = np.array([[0], [1], [1]]), np.eye(2, 3)
    monkeypatch.setattr(semantic, "partition", lambda unit, size, homes, seed: two)
    out = semantic.apply(frame, unit, Curate(), 0)
    assert out["keep"].tolist()[0]
    assert sorted(out["keep"].tolist()[1:3]) == [False, True]
    assert out["keep"].tolist()[3:] == [True, True]


def test_greedy_spares_what_only_a_lost_image_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    one_cluster(monkeypatch)
    angles = np.deg2rad([0, 10, 20, 80])  # a~b, b~c, not a~c
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    frame = frame_of([{} for _ in range(4)])
    kept = {}
    for mode in (False, True):
        cfg = settings(semantic={"epsilon": 0.03, "greedy": mode, "prefer": "hard"})
        kept[mode] = semantic.apply(frame, unit, cfg, 0)["keep"].tolist()
    # Farthest from the mean direction comes first: 80, then 0, 10 and 20 degrees.
    assert kept == {False: [True, False, False, True], True: [True, False, True, True]}
    with pytest.raises(HeadwaterError, match="greedy mode needs epsilon"):
        semantic.apply(frame, unit, settings(semantic={"greedy": True, "keep": 0.5}), 0)


def test_greedy_equals_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    one_cluster(monkeypatch)
    frame, unit = cloud(150, seed=3)
    cfg = settings(semantic={"epsilon": 0.08, "greedy": True})
    out = semantic.apply(frame, unit, cfg, 0)
    x = unit.astype(np.float64)
    kept: list[int] = []
    for j in np.argsort(x @ x.mean(axis=0)):
        if all(x[i] @ x[j] <= 0.92 for i in kept):
            kept.append(int(j))
    assert sorted(kept) == np.flatnonzero(out["keep"]).tolist()
    assert set(out.loc[~out["keep"], "dup_of"]) <= set(out.loc[kept, "sha256"])


# ---- hierarchical ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_allocation_is_exact_and_water_filling_at_every_node(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = [rng.integers(0, 12, 300), rng.integers(0, 5, 12), rng.integers(0, 2, 5)]
    parents[0][:12], parents[1][:5], parents[2][:2] = range(12), range(5), range(2)
    leaf = np.bincount(parents[0], minlength=12)
    for target in (0, 1, 7, 60, 155, 299, 300, 1000):
        kept = hierarchical.allocate(parents, target, np.random.default_rng(seed))
        assert kept.sum() == min(target, 300)
        assert (kept <= leaf).all()
        sizes = leaf
        for level in (1, 2):
            for node in range(len(np.unique(parents[level]))):
                own = parents[level] == node
                assert sorted(kept[own]) == brute_fill(sizes[own], int(kept[own].sum()))
            kept, sizes = (
                np.bincount(parents[level], weights=x).astype(int) for x in (kept, sizes)
            )
        assert sorted(kept) == brute_fill(sizes, min(target, 300))


def test_one_level_is_flat_balance() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    rng = np.random.default_rng(0)
    quota = hierarchical.allocate([labels], 40, rng)
    expected = _share.water_fill(np.array([50, 20, 5]), 40, np.random.default_rng(0))
    assert quota.tolist() == expected.tolist()


def test_without_resampling_it_is_k_means_as_good_as_scikit_learns() -> None:
    _, points = blobs((240, 80, 80, 50, 40))  # few enough that all are learnt from
    plain = _vectors.kmeans(points, 5, 0, spherical=False)
    found = hierarchical.resampled_kmeans(points, 5, 0, 0)
    assert np.array_equal(plain, found)
    labels = _vectors.assign(points, found, spherical=False)
    inertia = np.square(points - found[labels]).sum()
    theirs = KMeans(5, n_init=10, random_state=0).fit(points)
    assert inertia <= 1.01 * theirs.inertia_
    squares = np.square(points[:, None] - found[None]).sum(axis=2)
    assert labels.tolist() == squares.argmin(axis=1).tolist()


def test_a_lopsided_density_is_sampled_more_evenly_than_flat_or_by_chance() -> None:
    """The paper's toy in one dimension: a hundred times as dense on a tenth of the line."""
    rng = np.random.default_rng(0)
    dense, sparse = rng.uniform(0, 1, 9000), rng.uniform(1, 10, 810)
    points = np.concatenate([dense, sparse]).astype(np.float32)[:, None]
    target = 600

    def distance(parents: list[np.ndarray]) -> float:
        quota = hierarchical.allocate(parents, target, np.random.default_rng(0))
        draw = np.random.default_rng(1)
        taken = [
            draw.choice(np.flatnonzero(parents[0] == c), q, replace=False)
            for c, q in enumerate(quota)
            if q
        ]
        sample = points[np.concatenate(taken), 0]
        assert len(sample) == target
        return float(stats.kstest(sample, stats.uniform(0, 10).cdf).statistic)

    deep = distance(hierarchical.fit(points, Hierarchy(levels=(300, 60, 15), resampling=10), 0))
    flat = distance(hierarchical.fit(points, Hierarchy(levels=(300,), resampling=0), 0))
    chance = stats.kstest(rng.choice(points[:, 0], target), stats.uniform(0, 10).cdf).statistic
    assert deep < 0.6 * flat < 0.6 * chance
    assert deep < 0.2


def test_the_step_cuts_what_there_is_most_of_and_only_in_training() -> None:
    frame, features = blobs((400, 40, 20, 20))
    frame.loc[::5, "split"] = "test"
    cfg = settings(keep=0.4, hierarchy={"levels": [24, 4], "resampling": 3})
    out = hierarchical.apply(frame, features, cfg, 0)
    pool = frame["split"] == "train"
    assert out.loc[~pool, "keep"].all()
    kept = out[pool & out["keep"]]
    assert len(kept) == round(0.4 * pool.sum())
    share = kept["source"].value_counts()
    assert (share[["blob 1", "blob 2", "blob 3"]] >= [32, 16, 16]).all()
    lost = out[~out["keep"]]
    assert lost["detail"].str.fullmatch(r"\d+ of \d+ kept in its cluster").all()
    near = settings(keep=0.4, hierarchy={"levels": [24, 4], "resampling": 3, "draw": "nearest"})
    assert len(hierarchical.apply(frame, features, near, 0).query("keep")) == out["keep"].sum()


def test_levels_must_narrow() -> None:
    frame, features = blobs((30, 30))
    for levels in ([10, 10], [4, 8], [0]):
        with pytest.raises(HeadwaterError, match="fewer clusters than the one below"):
            hierarchical.apply(frame, features, settings(hierarchy={"levels": levels}), 0)
    assert hierarchical.default_levels(1_000_000) == (1000, 100, 10)
    assert hierarchical.default_levels(5) == (2,)
    assert [len(p) for p in hierarchical.fit(features[:5], Hierarchy(), 0)] == [5]


# ---- temperature -------------------------------------------------------------------------------


def ideal(sizes: np.ndarray, target: int, t: float) -> np.ndarray:
    """min(n, c n^(1/T)) with the root found by scipy."""
    wish = sizes ** (1 / t)
    c = optimize.brentq(lambda v: np.minimum(sizes, v * wish).sum() - target, 0, sizes.max() + 1)
    return np.minimum(sizes, c * wish)


@pytest.mark.parametrize("t", [1.0, 2.0, 5.0, 1e9])
def test_shares_follow_the_temperature_and_add_up(t: float) -> None:
    sizes = np.array([1000, 300, 50, 7, 0, 1])
    for target in (0, 1, 40, 333, 1200, 1358):
        kept = _share.tempered(sizes, target, t, np.random.default_rng(0))
        assert kept.sum() == target
        assert (kept <= sizes).all()
        if 0 < target < 1358:
            assert np.abs(kept - ideal(sizes.astype(float), target, t)).max() < 1.0
    flat = _share.water_fill(sizes, 333, np.random.default_rng(0))
    if t > 1e6:
        hot = _share.tempered(sizes, 333, t, np.random.default_rng(0))
        assert np.abs(np.sort(hot) - np.sort(flat)).max() <= 1


def test_rounding_is_right_on_average() -> None:
    sizes = np.array([10, 10, 10, 3])
    kept = [_share.tempered(sizes, 4, 1.0, np.random.default_rng(s)) for s in range(400)]
    assert np.abs(np.mean(kept, axis=0) - sizes * 4 / 33).max() < 0.1


def test_the_step_keeps_shares_at_1_and_evens_them_out_beyond() -> None:
    frame, features = blobs((300, 30, 30))
    cold = temperature.apply(frame, features, settings(keep=0.5, clusters=3, temperature=1), 0)
    warm = temperature.apply(frame, features, settings(keep=0.5, clusters=3, temperature=4), 0)
    assert cold[cold["keep"]]["source"].value_counts().tolist() == [150, 15, 15]
    assert warm[warm["keep"]]["source"].value_counts().tolist() == [120, 30, 30]
    assert (warm.loc[~warm["keep"], "reason"] == "temperature").all()


def test_labels_stand_for_clusters_where_they_are_known() -> None:
    frame, features = blobs((200, 100))
    frame["label"] = ["cat"] * 150 + ["dog"] * 50 + [None] * 100
    cfg = settings(keep=0.5, clusters=2, temperature=1e6, by_label=True)
    out = temperature.apply(frame, features, cfg, 0)
    kept = out[out["keep"]]
    assert kept["label"].value_counts(dropna=False).tolist() == [50, 50, 50]
    order = np.random.default_rng(0).permutation(300)
    mixed = temperature.apply(frame.iloc[order].reset_index(drop=True), features[order], cfg, 0)
    named = mixed["label"].notna()
    numbers = mixed[named].groupby("label")["cluster"].unique().map(list).to_dict()
    assert numbers == {"cat": [0], "dog": [1]}


# ---- retrieval ---------------------------------------------------------------------------------


def test_nearest_neighbours_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 3)
    _, queries = cloud(10, seed=1)
    _, pool = cloud(200, seed=2)
    rows, cosines = retrieval.nearest(queries, pool, 5)
    exact = queries.astype(np.float64) @ pool.astype(np.float64).T
    assert rows.tolist() == np.argsort(-exact, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(cosines, -np.sort(-exact, axis=1)[:, :5], atol=1e-6)


def museum(count: int = 12) -> tuple[pd.DataFrame, np.ndarray]:
    """Three blobs; some images of blob 1 are trusted."""
    frame, features = blobs((100, 60, 40))
    trusted = frame.index[frame["source"] == "blob 1"][:count]
    frame.loc[trusted, "source"] = "museum"
    frame.loc[::7, "split"] = "test"
    return frame, features


def test_only_what_trusted_training_images_ask_for_is_kept() -> None:
    frame, features = museum()
    cfg = settings(retrieval={"trusted": ["source=museum"], "neighbours": 3})
    out = retrieval.apply(frame, features, cfg, 0)
    alive = frame["split"] == "train"
    asks = alive & (frame["source"] == "museum")
    pool = frame.index[alive & ~asks]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = set()
    for q in frame.index[asks]:
        wanted |= set(pool[np.argsort(-(unit[pool] @ unit[q]))[:3]])
    kept = set(out.index[out["keep"]])
    assert kept == wanted | set(frame.index[asks]) | set(frame.index[~alive])
    assert (out.loc[~out["keep"], "reason"] == "retrieval").all()
    assert out.loc[~out["keep"], "detail"].str.contains("3 nearest").all()


def test_few_trusted_images_ask_for_clusters() -> None:
    frame, features = museum()
    how = {"trusted": ["source=museum"], "neighbours": 2, "hits": 4}
    out = retrieval.apply(frame, features, settings(clusters=3, retrieval=how), 0)
    pool = (frame["split"] == "train") & (frame["source"] != "museum")
    asking = ((frame["split"] == "train") & (frame["source"] == "museum")).sum()
    kept = out[pool & out["keep"]]
    assert set(kept["source"]) == {"blob 1"}
    assert len(kept) == 2 * asking
    how["hits"] = 1000
    out = retrieval.apply(frame, features, settings(clusters=3, retrieval=how), 0)
    assert not out.loc[pool, "keep"].any()


def test_trusted_images_come_from_a_list_or_a_column(tmp_path: Path) -> None:
    frame, _ = museum()
    file = tmp_path / "trusted.txt"
    file.write_text("\n".join(frame["sha256"][:3]) + "\n")
    mask = retrieval.trusted(frame, (str(file), "group=" + frame["group"][9]))
    assert np.flatnonzero(mask).tolist() == [0, 1, 2, 9]


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        ([], "needs trusted images"),
        (["source=nowhere"], "names no image"),
        (["nowhere.txt"], "nor a list"),
        (["colour=red"], "nor a list"),
        (["bad.txt"], "is no sha256"),
        (["group=late"], "dropped or in the test split"),
    ],
)
def test_unusable_trusted_images_are_refused(
    trusted: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_text("xyz\n")
    frame, features = museum()
    frame.loc[0, ["group", "split"]] = ["late", "test"]
    with pytest.raises(HeadwaterError, match=message):
        retrieval.apply(frame, features, settings(retrieval={"trusted": trusted}), 0)
