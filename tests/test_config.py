"""Configuration and the small helpers at the bottom."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssl_core import artifacts, plugins
from ssl_core.config import Config, load
from ssl_core.errors import HeadwaterError

OPTIONS = """
seed
data.sources data.test_fraction data.max_pixels data.min_side data.channels
scale.engine scale.address scale.workers
validate.max_reject_share validate.min_images validate.min_classes validate.max_unlabelled_share
validate.max_class_drift validate.class_drift validate.min_per_class
audit.features audit.folds audit.review audit.too_well audit.lean audit.cluster
audit.permutations audit.min_class audit.precision audit.fill
seed_encoder.encoder seed_encoder.image_size seed_encoder.batch_size
curate.steps curate.near_cosine curate.near_hamming curate.clusters curate.keep
synthesise.generators synthesise.target synthesise.least synthesise.tries synthesise.side
synthesise.pool synthesise.options synthesise.copy_cosine synthesise.unusual synthesise.guesses
shard.max_bytes shard.max_side shard.place
pretrain.method pretrain.recipe pretrain.options pretrain.backbone
pretrain.backbone_args pretrain.image_size
pretrain.crop_size pretrain.epochs pretrain.batch_size pretrain.lr pretrain.weight_decay
pretrain.before.method pretrain.before.options pretrain.before.epochs pretrain.before.lr
pretrain.before.weight_decay pretrain.sam.radius pretrain.sam.alpha pretrain.sam.encoder
pretrain.check_steps pretrain.rollbacks pretrain.accumulate pretrain.nodes pretrain.rendezvous
pretrain.restarts pretrain.parallel pretrain.export pretrain.augment pretrain.packing
pretrain.activation_checkpointing pretrain.compile
pretrain.warmup pretrain.precision pretrain.processes pretrain.checkpoint_steps pretrain.init
embed.batch_size
evaluate.measures evaluate.baselines evaluate.bootstrap evaluate.many evaluate.few
evaluate.neighbours evaluate.shots evaluate.draws
promote.level promote.bootstrap promote.margin promote.first_baseline
deploy.incoming deploy.labels deploy.detectors deploy.alpha deploy.permutations deploy.reference
deploy.group deploy.unit deploy.season deploy.pause
deploy.min_drop deploy.harm_alpha deploy.estimators deploy.min_labels deploy.cooldown_days
deploy.alerts
repair.rungs repair.metric repair.held_out repair.regain repair.old_margin repair.mix
repair.steps repair.lr
repair.rank repair.ssl_epochs repair.ssl_lr repair.max_seconds repair.max_labels repair.per_week
repair.approval repair.shadow_days repair.shadow_unlabelled repair.watch_days
analyse.analyses analyse.encoders analyse.images analyse.masks analyse.steps
bench.sets bench.extra[].method bench.extra[].name bench.extra[].seeds bench.extra[].changes
bench.methods bench.seeds bench.teraflops bench.fine_tune_steps bench.backbone
bench.backbone_args bench.image_size bench.batch_size bench.test_fraction bench.options
simulate.images simulate.image_size simulate.new simulate.often simulate.weeks simulate.per_week
simulate.labelled simulate.scenarios simulate.policies simulate.period simulate.threshold
simulate.window simulate.settings
seeds.arms[].method seeds.arms[].name seeds.arms[].seeds seeds.arms[].changes
curate.by_label curate.hierarchy.draw curate.hierarchy.levels curate.hierarchy.resampling
curate.near_look curate.near_pixels curate.retrieval.hits curate.retrieval.neighbours
curate.retrieval.trusted curate.semantic.epsilon curate.semantic.greedy curate.semantic.keep
curate.semantic.prefer curate.temperature study.both study.classes study.contrast study.depths
study.equal study.images study.masked study.method study.quantities study.seeds study.sets
study.shots study.temperatures study.teraflops
"""


def dotted(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every option of the JSON schema as section.key; ``[]`` stands for an entry of a list."""
    for name, value in node["properties"].items():
        key, inner = f"{prefix}{name}", value.get("items", value)
        if "$ref" not in inner:
            yield key
            continue
        part = schema["$defs"][inner["$ref"].rpartition("/")[2]]
        yield from dotted(schema, part, f"{key}{'[]' if 'items' in value else ''}.")


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("pretrain:\n  epoch: 3\n")
    with pytest.raises(HeadwaterError, match=r"'pretrain.epoch'.*did you mean 'epochs'"):
        load(path)


def test_bad_value_names_value_and_place(tmp_path: Path) -> None:
    with pytest.raises(HeadwaterError, match=r"curate.keep = 7.*less than or equal to 1"):
        load(tmp_path / "params.yaml", {"curate.keep": 7})


def test_repository_params_are_valid() -> None:
    load(Path(__file__).parent.parent / "params.yaml")


def test_the_option_list_changes_only_on_purpose() -> None:
    schema = Config.model_json_schema()
    assert sorted(dotted(schema, schema)) == sorted(OPTIONS.split())


def test_unknown_plugin_lists_the_choices() -> None:
    with pytest.raises(HeadwaterError, match=r"did you mean 'simclr'"):
        plugins.load("methods", "simlcr")


def test_atomic_dir_keeps_the_old_one_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "product"
    with artifacts.atomic_dir(target) as out:
        (out / "a").write_text("old")

    def fail() -> None:
        with artifacts.atomic_dir(target) as out:
            (out / "a").write_text("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["product"]


def test_atomic_file_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    artifacts.write_json(path, ["x"] * 5000)
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(len(artifacts.read_json(path)))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        artifacts.write_json(path, ["y"] * 5000)
    done.set()
    reader.join()
    assert set(seen) == {5000}


def test_torn_log_line_swallows_no_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    artifacts.append_line(path, {"n": 1})
    with path.open("a") as stream:
        stream.write('{"n": 2, "torn')
    artifacts.append_line(path, {"n": 3})
    assert [r["n"] for r in artifacts.read_lines(path)] == [1, 3]


def test_lineage_has_no_time_and_hashes_everything(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("in")
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "out.txt").write_text("out")
        artifacts.write_lineage(folder, "stage", {"k": 1}, {"source": source}, {"kept": 2})
    first, second = (tmp_path / n / artifacts.LINEAGE for n in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert set(artifacts.read_json(first)["outputs"]) == {"out.txt"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (OSError("133120 requested and 33760 written"), "no space left"),  # numpy's
        (OSError(errno.EROFS, "Read-only file system"), r"\(Read-only file system\)"),
    ],
)
def test_a_place_that_takes_nothing_is_named(tmp_path: Path, error: OSError, words: str) -> None:
    target, named = tmp_path / "product", f"product: could not be written.*{words}"
    for writer in (artifacts.atomic_dir, artifacts.atomic_file):
        with pytest.raises(HeadwaterError, match=named), writer(target):
            raise error
    other = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input.parquet")
    with pytest.raises(PermissionError, match="input"), artifacts.atomic_file(target):
        raise other
