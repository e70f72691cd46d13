"""Every recommendation is a valid configuration, and the rules say what they rest on."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from ssl_core import config, job, models, plugins
from ssl_core.__main__ import app
from ssl_core.config import Config, Paths
from ssl_core.errors import HeadwaterError
from ssl_core.stages import _choice, _rules, recommend
from ssl_core.types import Task

IMAGES = (32, 1_000, 20_000, 10**5, 10**6, 10**8)
GRID = [
    dict(
        zip(
            ("images", "classes", "task", "compute", "tail", "labels", "object_scale"),
            v,
            strict=True,
        )
    )
    for v in itertools.product(
        IMAGES,
        (0, 2, 10, 1000),
        ("classification", "dense"),
        ("cpu", "5", "2000"),
        (1.0, 100.0),
        (0.0, 0.9),
        (0.02, 0.5),
    )
]


def ask(tmp_path: Path, **given: Any) -> dict[str, Any]:
    return recommend.run(Config(), Paths(tmp_path), **given)


def start(tmp_path: Path, **given: Any) -> Any:
    value = ask(tmp_path, **given)["advice"]["temperature"]["value"]
    return value and value["start"]


def test_every_recommendation_is_valid(tmp_path: Path) -> None:
    """Loads as params.yaml, and its options fit the method; seen: the whole table of methods."""
    seen: dict[str, dict[str, Any]] = {}
    for given in GRID:
        snippet = yaml.safe_dump(ask(tmp_path, **given)["params"], sort_keys=False)
        seen.setdefault(snippet, given)
    methods = set()
    path = tmp_path / "params.yaml"
    for snippet, given in seen.items():
        path.write_text(snippet)
        p = config.load(path).pretrain
        options = job.options(p)
        methods.add(p.method)
        assert 0 < options.scale[0] < options.scale[1] <= 1
        assert 4 <= p.batch_size <= given["images"] / 8
        assert p.batch_size & (p.batch_size - 1) == 0
        assert 0 < p.epochs <= 800
        assert p.image_size >= p.crop_size
        wanted = {k: v for k, v in p.options.items() if not isinstance(v, dict)}
        got = options.model_dump()
        assert {
            k: got[k] if not isinstance(got[k], tuple) else list(got[k]) for k in wanted
        } == wanted
    assert methods == {advice.value for _, advice in _choice.METHODS}


def test_recommended_methods_can_be_built(tmp_path: Path) -> None:
    """Encoder, method and views, without memory or time: on the device meta."""
    done = set()
    for given in GRID:
        tree = ask(tmp_path, **given)["params"]
        p = Config.model_validate(tree).pretrain
        if (p.method, p.backbone, p.recipe) in done:
            continue
        done.add((p.method, p.backbone, p.recipe))
        with torch.device("meta"):
            encoder = models.create(p.backbone, p.backbone_args)
            options = job.options(p)
            plugin = plugins.load("methods", p.method)
            method = plugin.Method(encoder, options, Task(p.crop_size, 100, given["classes"]))
        views = method.views
        assert views[0].size == p.crop_size
        if encoder.is_vit:
            assert all(v.size % encoder.stride == 0 for v in views)
        if (p.sam.radius and p.sam.alpha) > 0:
            assert "weights" in plugin.Method.wants
    assert len(done) > 10


def test_every_advice_has_a_reason_and_an_honest_source(tmp_path: Path) -> None:
    for given in GRID[::7]:
        result = ask(tmp_path, **given)
        assert set(result["advice"]) == {"method", *_rules.RULES}
        for key, advice in result["advice"].items():
            assert advice["reason"], key
            source = advice["source"]
            assert re.search(
                r"arXiv \d{4}\.\d{5}|rule of thumb|LOG\.md|by |the method's", source
            ), source
        assert any("rule of thumb" in note for note in result["notes"])
        assert "rule of thumb" in result["advice"]["method"]["source"]


def test_sources_are_among_those_of_the_methods() -> None:
    """No arXiv id that the library does not cite elsewhere: none is made up."""
    root = Path(recommend.__file__).parent
    rules = (root / "_rules.py").read_text() + (root / "_choice.py").read_text()
    library = "".join(p.read_text() for p in root.parent.rglob("*.py") if p.parent != root)
    missing = set(re.findall(r"\d{4}\.\d{5}", rules)) - set(re.findall(r"\d{4}\.\d{5}", library))
    assert not missing


def test_temperature_is_a_range_around_its_start(tmp_path: Path) -> None:
    for given in GRID:
        value = ask(tmp_path, **given)["advice"]["temperature"]["value"]
        if value is None:
            continue
        ends = value["start"]
        inside = [ends["start"], ends["end"]] if isinstance(ends, dict) else [ends]
        assert 0 < value["low"] < value["high"] <= 1
        assert all(value["low"] <= t <= value["high"] for t in inside)


def test_fewer_classes_start_with_a_higher_temperature(tmp_path: Path) -> None:
    starts = [start(tmp_path, images=5000, classes=c) for c in (2, 10, 100, 1000)]
    assert starts == sorted(starts, reverse=True)
    assert starts[0] == pytest.approx(0.5)
    assert starts[-1] == pytest.approx(0.1)


def test_losses_without_temperature_get_none(tmp_path: Path) -> None:
    assert start(tmp_path, images=5000, task="dense") is None
    assert start(tmp_path, images=10**7, task="dense", compute="20") is None  # mae


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"images": 4000}, "simclr"),
        ({"images": 10**8}, "simclr"),  # on a CPU
        ({"images": 500}, "vicreg"),
        ({"images": 10**5, "compute": "50"}, "dino"),
        ({"images": 10**7, "compute": "5000"}, "dinov2"),
        ({"images": 4000, "task": "dense"}, "vicregl"),
        ({"images": 10**5, "task": "dense", "compute": "50"}, "ibot"),
        ({"images": 10**7, "task": "dense", "compute": "50"}, "mae"),
        ({"images": 10**5, "tail": 100, "compute": "50"}, "pmsn"),
        ({"images": 4000, "classes": 9, "labels": 0.8}, "supcon"),
        ({"images": 4000, "classes": 9, "labels": 0.8, "tail": 50}, "supcon_ce"),
        ({"images": 4000, "classes": 9, "labels": 0.1, "tail": 50}, "simclr"),
        ({"images": 4000, "classes": 9, "labels": 0.8, "task": "dense"}, "vicregl"),
    ],
)
def test_methods_by_data_and_goal(tmp_path: Path, given: dict[str, Any], want: str) -> None:
    assert ask(tmp_path, **given)["params"]["pretrain"]["method"] == want


def test_cpu_gets_a_small_backbone_and_never_a_large_one(tmp_path: Path) -> None:
    for given in GRID:
        name = ask(tmp_path, **given)["params"]["pretrain"]["backbone"]
        small = name in ("resnet10t", "vit_tiny_patch16_224")
        assert small == (given["compute"] == "cpu")


def test_small_objects_get_larger_crops(tmp_path: Path) -> None:
    for common in ({"images": 4000}, {"images": 10**5, "compute": "50"}):
        lows = []
        for share in (0.05, 0.2, 0.6):
            options = ask(tmp_path, object_scale=share, **common)["params"]["pretrain"]["options"]
            lows.append(options["scale"][0])
            local = options.get("local_scale")
            assert local is None or local[1] <= options["scale"][0]  # they meet, not overlap
        assert lows[0] > lows[1] > lows[2]


def test_long_tails_without_labels(tmp_path: Path) -> None:
    tree = ask(tmp_path, images=4000, tail=100, compute="2")["params"]["pretrain"]
    assert tree["sam"]["alpha"] > 0
    assert tree["options"]["temperature"]["kind"] == "cosine"
    assert "sam" not in ask(tmp_path, images=4000, tail=100, compute="cpu")["params"]["pretrain"]


def test_epochs_are_cut_to_the_compute_and_the_note_says_so(tmp_path: Path) -> None:
    rich = ask(tmp_path, images=10**8, compute="100000")
    poor = ask(tmp_path, images=10**8, compute="5")
    assert rich["advice"]["epochs"]["value"] == 10
    assert poor["advice"]["epochs"]["value"] < 1
    assert any("covers only" in note for note in poor["notes"])
    assert not any("covers only" in note for note in rich["notes"])


def shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    labels = ["a"] * 60 + ["b"] * 6 + [None] * 14 + ["b"] * 20
    frame = pd.DataFrame({"split": ["train"] * 80 + ["test"] * 20, "label": labels})
    frame.to_parquet(folder / "index.parquet")
    (folder / "index.json").write_text(json.dumps({"classes": ["a", "b"], "shards": {}}))


def test_what_is_not_given_is_read_from_the_shards(tmp_path: Path) -> None:
    shards(Paths(tmp_path).shards)
    facts = ask(tmp_path, classes=7)["facts"]
    assert facts["images"] == {"value": 80, "from": "shards"}  # of the train split
    assert facts["classes"] == {"value": 7, "from": "given"}
    assert facts["tail"] == {"value": 10.0, "from": "shards"}
    assert facts["labels"] == {"value": 0.825, "from": "shards"}
    assert facts["task"] == {"value": "classification", "from": "assumed"}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "holds no shards"),
        ({"images": 3}, "--images 3: must be at least 32"),
        ({"images": 99, "classes": -1}, "--classes"),
        ({"images": 99, "tail": 0.5}, "--tail"),
        ({"images": 99, "object_scale": 0.0}, "--object-scale"),
        ({"images": 99, "task": "poetry"}, "--task poetry"),
        ({"images": 99, "compute": "much"}, "--compute much"),
        ({"images": 99, "compute": "-2"}, "--compute"),
        ({"images": 99, "compute": "nan"}, "--compute"),
        ({"images": 99, "labels": 1.5}, "--labels"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, given: dict[str, Any], match: str) -> None:
    with pytest.raises(HeadwaterError, match=match):
        ask(tmp_path, **given)


def test_command_prints_advice_and_a_snippet_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["recommend", "--images", "20000", "--classes", "5", "--compute", "cpu"]
    printed = CliRunner().invoke(app, options)
    assert printed.exit_code == 0, printed.output
    for word in ("rule of thumb", "arXiv", "(given)", "(assumed)", "0.394, within 0.197 to 0.788"):
        assert word in printed.output
    snippet = printed.output.split("For params.yaml:\n")[1]
    (tmp_path / "params.yaml").write_text(snippet)
    assert config.load().pretrain.method == "simclr"
    as_json = json.loads(CliRunner().invoke(app, [*options, "--json"]).output)
    assert as_json["params"] == yaml.safe_load(snippet)
