"""Confounders: scores against loops, chance that keeps groups whole, planted ones and none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mutual_info_score

from ssl_core.audit import confounders, properties
from ssl_core.audit.confounders import Ground
from ssl_core.config import Audit

RNG = np.random.default_rng
CFG = Audit(permutations=99)


def ground(seed: int = 0, count: int = 600, classes: int = 4, size: int = 2) -> Ground:
    """Labels that are equal within groups, and a probe that is right in four of five."""
    rng = RNG(seed)
    label = np.repeat(rng.integers(0, classes, count // size), size)
    said = np.where(rng.random(count) < 0.8, label, rng.integers(0, classes, count))
    group = np.repeat(np.arange(count // size), size).astype(str)
    return Ground(label, said, group, tuple(f"c{i}" for i in range(classes)))


def column(name: str, values: np.ndarray) -> properties.Property:
    return properties.prepare(pd.DataFrame({name: values}))[0]


def planted(g: Ground, inside: float = 0.9, outside: float = 0.03, seed: int = 1) -> np.ndarray:
    """ "blue" on most images of class 1 and on few others."""
    rng = RNG(seed)
    has = rng.random(len(g.label)) < np.where(g.label == 1, inside, outside)
    return np.where(has, "blue", rng.choice(["white", "grey"], len(has)))


def test_scores_are_those_of_a_classifier_learned_on_the_other_folds() -> None:
    g, code, fold = ground(), RNG(3).integers(0, 5, 600), RNG(5).integers(0, 5, 600)
    code = np.where(RNG(4).random(600) < 0.5, g.label, code)
    found = confounders.scores(confounders.counts(code, g.label, fold, (5, 5, 4)))
    for c in range(4):
        said = np.zeros(600, bool)
        for k in range(5):
            train, own = fold != k, g.label == c
            for b in range(5):
                inside = (code[train & own] == b).mean()
                outside = (code[train & ~own] == b).mean()
                said[(fold == k) & (code == b)] = inside > outside
        assert found[c] == pytest.approx(balanced_accuracy_score(g.label == c, said))


def test_shuffles_move_whole_groups_of_one_size() -> None:
    groups = np.array(["a", "b", "a", "c", "d", "d", "d", "e", "f", "f"])
    size = pd.Series(groups).map(pd.Series(groups).value_counts()).to_numpy()
    seen = set()
    for order in confounders.shuffles(groups, 60, 0):
        assert sorted(order) == list(range(10))
        assert (size[order] == size).all()
        for name in "adf":  # those that were together still are
            assert len(set(groups[order][groups == name])) == 1
        seen.add("".join(groups[order]))
    assert len(seen) == 2 * 6  # {a, f} and {b, c, e}


def test_lean_is_the_difference_at_the_same_label() -> None:
    g = ground(size=1)
    has = RNG(5).random(600) < 0.4
    said = np.where(has & (RNG(6).random(600) < 0.5), 2, g.said)
    g = Ground(g.label, said, g.group, g.classes)
    own, names = g.label == 2, said == 2
    sides = [names[s & has].mean() - names[s & ~has].mean() for s in (own, ~own)]
    value, low, high = confounders.lean(g, 2, has)
    assert value == pytest.approx(np.mean(sides))
    assert low < value < high
    none, low, high = confounders.lean(g, 2, RNG(7).random(600) < 0.4)
    assert low < 0 < high
    assert abs(none) < 0.1


def test_lean_needs_images_of_both_kinds_on_a_side() -> None:
    g = ground(size=1)
    inside_only = (g.label == 2) & (RNG(8).random(600) < 0.5)
    own, names = g.label == 2, g.said == 2
    expected = names[inside_only].mean() - names[own & ~inside_only].mean()
    assert confounders.lean(g, 2, inside_only)[0] == pytest.approx(expected)
    assert np.isnan(confounders.lean(g, 2, np.ones(600, bool))[0])


def test_a_property_that_a_probe_leans_on_is_named() -> None:
    g = ground()
    values = planted(g)
    said = np.where((values == "blue") & (RNG(2).random(600) < 0.6), 1, g.said)
    g = Ground(g.label, said, g.group, g.classes)
    columns = [column("border_colour", values), column("brightness", RNG(0).normal(size=600))]
    found = confounders.rank(confounders.search(g, columns, CFG))
    first = found.iloc[0]
    assert (first["property"], first["class"], first["value"]) == ("border_colour", "c1", "blue")
    assert first["score"] == pytest.approx(0.93, abs=0.04)
    assert found["named"].tolist() == [True, False]
    assert "leans on it" in first["text"]
    assert found["property"].tolist() == ["border_colour", "brightness"]  # all are listed


def test_one_finding_under_two_names_is_one() -> None:
    g = ground()
    values = planted(g)
    other = np.where(values == "blue", "red", "none")
    other[:10] = "none"
    columns = [
        column("source", values),
        column("format", other),
        column("mode", planted(g, seed=9)),
    ]
    found = confounders.rank(confounders.search(g, columns, CFG))
    assert found["named"].all()
    same = dict(zip(found["property"], found["same_as"], strict=True))
    assert sorted((same["source"], same["format"])) in (["", "format"], ["", "source"])
    assert same["mode"] == ""  # as telling, and on other images
    assert found.loc[found["same_as"] != "", "text"].str.startswith("As ").all()


def test_one_that_only_the_label_follows_is_named_if_it_is_metadata() -> None:
    g = ground()
    for name, named in (("border_colour", False), ("source", True)):
        found = confounders.search(g, [column(name, planted(g))], CFG)
        assert found["named"].tolist() == [named], name
        assert found["leans"].tolist() == [False]
        assert "leans" not in found["text"][0]


def test_chance_is_named_as_rarely_as_promised() -> None:
    """Of 40 grounds with 6 columns that tell nothing, in one of twenty any is significant."""
    cfg, alarms = Audit(permutations=39), 0
    for seed in range(40):
        g, rng = ground(seed, 240), RNG(1000 + seed)
        table = {"a": rng.normal(size=240), "b": rng.choice(list("xyz"), 240)}
        table |= {k: np.repeat(rng.normal(size=120), 2) for k in "cdef"}  # alike within groups
        found = confounders.by_label(g, properties.prepare(pd.DataFrame(table)), cfg, seed)
        alarms += bool((found["p_value"] <= confounders.LEVEL).any())
    assert alarms <= 6  # 2 are expected; more than 6 come by chance once in 300 times


def test_small_classes_are_not_judged() -> None:
    g = ground(classes=4)
    label = np.where((g.label == 3) & (np.arange(600) > 40), 0, g.label)
    g = Ground(label, label, g.group, g.classes)
    found = confounders.by_label(g, [column("source", planted(g))], CFG, 0)
    assert set(found["class"]) == {"c0", "c1", "c2"}
    none = confounders.search(g, [column("source", planted(g))], Audit(min_class=601))
    assert not len(confounders.rank(none))


# ---- clusters ----------------------------------------------------------------------------------


def test_the_share_told_is_mutual_information_over_entropy() -> None:
    rng = RNG(0)
    value, cluster = rng.integers(0, 3, 200), rng.integers(0, 7, 200)
    cluster = np.where(rng.random(200) < 0.5, value, cluster)
    zero = np.zeros(200, int)
    table = confounders.counts(value, cluster, zero, (1, 3, 7))[0]
    p = np.bincount(value) / 200
    expected = mutual_info_score(value, cluster) / -(p * np.log(p)).sum()
    assert confounders.told(table) == pytest.approx(expected)


def test_a_property_that_sorts_the_features_is_named_and_chance_is_not() -> None:
    rng = RNG(0)
    camera = rng.choice(["a", "b"], 500)
    features = rng.normal(size=(500, 8)) + np.where(camera == "a", 4, -4)[:, None]
    cluster = confounders.clusters(features.astype(np.float32), 0)
    groups = np.arange(500).astype(str)
    columns = [column("source", camera), column("brightness", rng.normal(size=500))]
    found = confounders.by_cluster(cluster, groups, columns, CFG)
    assert found["named"].tolist() == [True, False]
    assert found["score"][0] > 0.95
    assert abs(found["score"][1]) < 0.05  # less what chance makes of many clusters


# ---- properties --------------------------------------------------------------------------------

COLOURS = [
    ((220, 40, 40), "red"),
    ((40, 90, 220), "blue"),
    ((90, 20, 20), "dark red"),
    ((250, 220, 60), "yellow"),
    ((240, 140, 30), "orange"),
    ((40, 180, 60), "green"),
    ((40, 200, 210), "cyan"),
    ((130, 50, 230), "purple"),
    ((240, 80, 180), "pink"),
    ((250, 250, 245), "white"),
    ((160, 160, 165), "light grey"),
    ((90, 90, 90), "dark grey"),
    ((20, 10, 15), "black"),
    ((230, 30, 60), "red"),  # on the other side of zero degrees
]


@pytest.mark.parametrize(("rgb", "name"), COLOURS, ids=[c[1] + str(c[0][0]) for c in COLOURS])
def test_colours_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    assert properties.colour(np.array(rgb, np.float64)) == name


def test_border_and_corners_are_measured_where_they_are() -> None:
    image = np.full((64, 48, 3), 240, np.uint8)
    image[20:40, 10:30] = (10, 20, 30)  # what is shown
    plain = properties.image_table([image]).iloc[0]
    image[-5:, -5:] = (220, 40, 40)
    marked = properties.image_table([image]).iloc[0]
    changed = plain.index[plain != marked].tolist()
    assert "corner_bottom_right" in changed
    assert "corner_top_left" not in changed
    assert (plain["border_spread"], marked["corner_bottom_right"]) == (0, "red")
    image[:3], image[-3:], image[:, :3], image[:, -3:] = [(40, 90, 220)] * 4
    framed = properties.image_table([image]).iloc[0]
    assert (framed["border_colour"], framed["border_spread"]) == ("blue", 0)
    for shape in ((1, 1), (3, 200)):
        properties.measure(np.zeros((*shape, 3), np.uint8))  # no size is too small


def test_numbers_become_bins_and_rare_texts_one() -> None:
    rng = RNG(0)
    table = pd.DataFrame(
        {
            "one": 1.0,
            "number": np.r_[rng.normal(size=99), np.nan],
            "same": ["x"] * 100,
            "text": ["a"] * 50 + ["b"] * 40 + [f"rare{i}" for i in range(9)] + [None],
        }
    )
    number, text = properties.prepare(table)  # columns with one value tell nothing
    assert (number.name, text.name) == ("number", "text")
    assert np.bincount(number.code)[:8].max() <= 14
    assert number.names[number.code[-1]] == properties.NONE
    assert set(text.names) == {"a", "b", properties.OTHER}
    assert (np.diff(np.sort(table["number"].to_numpy()[:99])) > 0).all()
    order = np.argsort(table["number"].to_numpy()[:99])
    assert (np.diff(number.code[order]) >= 0).all()


def test_metadata_of_the_manifest() -> None:
    rows = pd.DataFrame(
        {
            "captured_at": pd.Series(["2026-03-02T07:30:00", "2026-03-07", None], dtype="str"),
            "width": [100, 50, 50],
            "height": [50, 100, 50],
            "source": ["a", "b", "b"],
            "format": "PNG",
            "mode": "RGB",
            "bytes": [5, 6, 7],
        }
    )
    found = properties.metadata_table(rows)
    assert found["captured_month"].fillna("").tolist() == ["2026-03", "2026-03", ""]
    assert found["captured_weekday"].fillna("").tolist() == ["Monday", "Saturday", ""]
    assert found["captured_hour"].fillna("").tolist() == ["07", "", ""]
    assert found["size"].tolist() == ["100 x 50", "50 x 100", "50 x 50"]
    assert found["aspect_ratio"].tolist() == [2.0, 0.5, 1.0]
