"""The comparison: what is trained, what is taken from the chain, and what the rows say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fill
from torch import nn

from ssl_core import train
from ssl_core.__main__ import CHAIN
from ssl_core.artifacts import read_json, write_json
from ssl_core.config import Config, Paths, load
from ssl_core.stages import seeds

BEFORE = list(CHAIN)[: list(CHAIN).index("promote")]
CHANGES = {"backbone": "resnet10t", "backbone_args": {}, "crop_size": 24}
ARMS = [{"method": "simclr", "seeds": 2}, {"method": "simclr", "changes": CHANGES}]
MEASURES = ("knn", "linear")


def config(paths: Paths) -> Config:
    return load(paths.root / "params.yaml", {"seeds.arms": ARMS})


def record(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What is trained from now on."""
    seen: list[Config] = []
    fit = train.fit

    def counted(cfg: Config, *rest: Any) -> nn.Module:
        seen.append(cfg)
        return fit(cfg, *rest)

    monkeypatch.setattr(train, "fit", counted)
    return seen


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, list[Config]]:
    """A project whose chain and comparison have run, and what the comparison trained."""
    paths = Paths(tmp_path_factory.mktemp("project"))
    fill(paths.root)
    for stage in BEFORE:
        importlib.import_module(f"ssl_core.stages.{stage}").run(config(paths), paths)
    with pytest.MonkeyPatch.context() as monkeypatch:
        trained = record(monkeypatch)
        seeds.run(config(paths), paths)
    return paths, trained


def rows(paths: Paths) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in read_json(paths.reports / "seeds.json")}


def test_there_is_a_row_for_each_arm_and_baseline(compared: tuple[Paths, list[Config]]) -> None:
    found = rows(compared[0])
    baselines = [f"{name} (baseline)" for name in ("random", "pixels", "seed")]
    assert list(found) == ["simclr", "simclr, resnet10t", *baselines]
    assert [row["seeds"] for row in found.values()] == [2, 1, 2, 1, 1]
    for row in found.values():
        for measure in MEASURES:
            values = row[f"{measure}_values"]
            assert len(values) == row["seeds"]
            assert all(0 <= v <= 1 for v in values)
            assert row[f"{measure}_mean"] == pytest.approx(np.mean(values))
            spread = np.std(values, ddof=1) if len(values) > 1 else 0
            assert row[f"{measure}_std"] == pytest.approx(spread)


def test_only_what_the_chain_has_not_made_is_trained(compared: tuple[Paths, list[Config]]) -> None:
    paths, trained = compared
    plain = config(paths).section("pretrain")
    made = [(cfg.seed, cfg.section("pretrain")) for cfg in trained]
    assert made == [(1, plain), (0, plain | CHANGES)]  # data, steps and batch are equal
    assert len(list((paths.runs / "seeds").glob("*.npy"))) == 2
    assert not [p for p in (paths.runs / "seeds").iterdir() if p.is_dir()]


def test_equal_features_have_equal_values_in_both_tables(
    compared: tuple[Paths, list[Config]],
) -> None:
    paths, _ = compared
    chain, found = read_json(paths.evaluation / "metrics.json"), rows(paths)
    same = {"pretrained": "simclr"} | {n: f"{n} (baseline)" for n in ("random", "pixels", "seed")}
    for encoder, name in same.items():
        for measure in MEASURES:
            assert found[name][f"{measure}_values"][0] == chain[encoder][measure]


def test_seeds_and_arms_differ(compared: tuple[Paths, list[Config]]) -> None:
    paths, _ = compared
    product = np.load(paths.embeddings / "features.npy")
    others = [np.load(p) for p in sorted((paths.runs / "seeds").glob("*.npy"))]
    widths = sorted(features.shape[1] for features in others)
    assert widths == [product.shape[1], 512]
    assert all(len(features) == len(product) for features in others)
    [second] = [features for features in others if features.shape == product.shape]
    assert not np.allclose(second, product, atol=1e-2)


def test_a_second_call_trains_nothing_and_says_the_same(
    compared: tuple[Paths, list[Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = compared
    first = (paths.reports / "seeds.json").read_bytes()
    trained = record(monkeypatch)
    seeds.run(config(paths), paths)
    assert trained == []
    assert (paths.reports / "seeds.json").read_bytes() == first


@pytest.mark.parametrize("product", ["pretrain", "embeddings"])
def test_products_that_do_not_fit_are_not_taken_for_an_arm(
    compared: tuple[Paths, list[Config]], product: str
) -> None:
    paths, _ = compared
    cfg = config(paths)
    assert seeds._is_product(cfg, paths)
    for other in (cfg.model_copy(update={"seed": 1}), seeds._variant(cfg, cfg.seeds.arms[1], 0)):
        assert not seeds._is_product(other, paths)
    file: Path = getattr(paths, product) / "lineage.json"
    whole = file.read_bytes()
    stale = read_json(file)
    stale["inputs"]["shards"] = "another version"
    write_json(file, stale)
    assert not seeds._is_product(cfg, paths)
    file.write_bytes(whole)


def test_another_methods_options_start_from_its_own_defaults() -> None:
    changes = {"lr": 1e-3, "options": {"scale": [0.3, 1.0]}}
    cfg = Config.model_validate(
        {
            "pretrain": {"method": "simclr", "weight_decay": 0.1, "epochs": 3, **changes},
            "seeds": {"arms": [{"method": "dino", "changes": {"options": {"locals_": 2}}}, *ARMS]},
        }
    )
    other, own, _ = (seeds._variant(cfg, arm, 4).pretrain for arm in cfg.seeds.arms)
    assert (other.method, other.options, other.epochs) == ("dino", {"locals_": 2}, 3)
    assert other.lr is other.weight_decay is None
    assert own == cfg.pretrain
