"""Commands about a whole project: status, run, trace, config; and how fast they start."""

# ruff: noqa: F811 (fixtures by name)
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml
from conftest import ROOT, headwater
from typer.testing import CliRunner
from whole_project import DAY, ask, made, place  # noqa: F401 (fixtures)

from ssl_core import lock, registry
from ssl_core.__main__ import CHAIN, app
from ssl_core.artifacts import read_json, sha256_file, write_json
from ssl_core.commands import run
from ssl_core.config import Paths, load
from ssl_core.errors import HeadwaterError

# ---- query -------------------------------------------------------------------------------------


def test_query_asks_results_in_sql(place: Path) -> None:
    tables = {row["name"] for row in ask("query")}
    assert {"manifest", "curated", "evaluation", "predictions", "rejects"} <= tables
    sql = "SELECT value FROM evaluation WHERE encoder = 'pretrained' AND measure = 'linear' "
    [row] = ask("query", sql + "AND slice = 'all' AND metric = 'accuracy'")
    metrics = read_json(Paths().evaluation / "metrics.json")
    assert row["value"] == metrics["pretrained"]["linear"]
    counts = ask("query", "SELECT keep, count(*) AS n FROM curated GROUP BY keep")
    assert sum(r["n"] for r in counts) == len(pd.read_parquet(Paths().curated / "curated.parquet"))
    text = CliRunner().invoke(app, ["query", "SELECT 1 AS one, 'x' AS two"]).stdout
    assert text.split() == ["one", "two", "1", "x"]
    with pytest.raises(HeadwaterError, match="tables here: manifest"):
        CliRunner().invoke(app, ["query", "SELECT * FROM nothing"], catch_exceptions=False)


# ---- status and run ----------------------------------------------------------------------------


def states() -> dict[str, str]:
    return {s["stage"]: s["state"] for s in ask("status")["stages"]}


def test_status_of_a_whole_project(place: Path) -> None:
    found = ask("status")
    assert states() == dict.fromkeys(CHAIN, "fresh"), found
    assert found["champion"]["id"] == registry.champion(Paths().registry)
    assert found["trainings"] == found["running"] == found["leftovers"] == []
    text = CliRunner().invoke(app, ["status"]).stdout
    assert "✓  pretrain    fresh" in text
    assert text.strip().splitlines()[-1].startswith("Next")


def test_status_names_what_changed(place: Path) -> None:
    params = place / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 4", "epochs: 5"))
    found = states()
    assert [k for k, v in found.items() if v == "stale"] == list(CHAIN)[5:]
    why = next(s for s in ask("status")["stages"] if s["stage"] == "pretrain")["why"]
    assert why == ["epochs was 4.0, is 5.0"]
    assert ask("status")["next"].startswith("headwater run: pretrain, embed")
    params.write_text(params.read_text().replace("epochs: 5", "epochs: 4"))
    shutil.copy(place / "images/temple/broken.png", place / "images/temple/new.png")
    (place / "images/flower/again.png").unlink()
    ingest = ask("status")["stages"][0]
    assert (ingest["state"], ingest["why"]) == ("stale", ["1 images new", "1 images gone"])
    assert set(states().values()) == {"stale"}


def test_status_sees_another_version_of_an_input(place: Path) -> None:
    lineage = Paths().shards / "lineage.json"
    write_json(lineage, read_json(lineage) | {"version": "other"})
    why = {s["stage"]: s["why"] for s in ask("status")["stages"]}
    assert why["pretrain"] == ["shards is another one now"]
    assert "pretrain is stale" in why["evaluate"]


def test_without_labels_nothing_waits_for_an_evaluation(place: Path) -> None:
    params, lineage = place / "params.yaml", Paths().manifest / "lineage.json"
    params.write_text(params.read_text().replace("min_images: 40", "min_classes: 0"))
    assert ask("status")["next"].endswith("evaluate, promote to do")
    record = read_json(lineage)
    write_json(lineage, record | {"counts": record["counts"] | {"classes": 0}})
    assert ask("status")["next"].endswith("pretrain, embed to do")


def test_interrupted_work_is_seen_and_the_only_copy_is_kept(place: Path) -> None:
    paths = Paths()
    work = paths.runs / "pretrain/0123456789ab"
    work.mkdir(parents=True)
    (work / "log.jsonl").write_text('{"step": 6, "loss": 1.5}\n')
    torn = paths.products / ".shards.ab12cd34"
    torn.mkdir()
    paths.embeddings.rename(paths.products / ".embeddings.ab12cd34.old")
    for path in [work, *work.iterdir(), torn, *paths.products.glob(".emb*")]:
        os.utime(path, (1e9, 1e9))
    for path in paths.products.glob(".emb*/*"):
        os.utime(path, (1e9, 1e9))
    found = ask("status")
    assert found["trainings"][0]["step"] == 7
    assert found["trainings"][0]["state"] == "interrupted"
    assert found["next"].startswith("headwater doctor")
    lines = {(x["level"], x["repair"]) for x in ask("doctor") if x["name"] == "leftovers"}
    old = "data/products/.embeddings.ab12cd34.old"
    assert ("fail", f"mv {old} data/products/embeddings") in lines
    listed = {Path(i["path"]).name for i in ask("clean")["items"]}
    assert listed >= {".shards.ab12cd34", "0123456789ab"}
    assert not any("embeddings" in name for name in listed)
    ask("clean", "--yes")
    assert (place / old).exists()
    assert not torn.exists()
    assert not work.exists()


def test_two_plain_runs_do_not_meet(place: Path) -> None:
    order: list[str] = []

    def again() -> None:
        run.one_by_one(["ingest"], load(), Paths(), False)
        order.append("second")

    other = threading.Thread(target=again)
    with lock.exclusive(Paths().runs / "chain.lock"):
        other.start()
        other.join(0.5)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_plain_run_does_only_what_is_stale(place: Path) -> None:
    lineage = Paths().evaluation / "lineage.json"
    write_json(lineage, read_json(lineage) | {"inputs": {}, "config": {"bootstrap": 1}})
    found = ask("run", "evaluate", "--plain")
    assert list(found["ran"]) == ["evaluate"]
    assert found["fresh"] == list(CHAIN)[:7]
    with pytest.raises(HeadwaterError, match="stage 'evalute': is not in the chain"):
        run.known(["evalute"])


# ---- trace -------------------------------------------------------------------------------------


def test_trace_follows_one_image_from_file_to_prediction(place: Path) -> None:
    file = sorted(Path("images/temple").glob("*.png"))[0]
    found = ask("trace", str(file))
    sha = sha256_file(file)
    assert found["sha256"] == sha
    assert found["manifest"][0]["label"] == "temple"
    assert found["predictions"][0]["date"] == DAY
    assert found["predictions"][0]["model"] == registry.champion(Paths().registry)
    if found["shard"]:
        row = found["shard"][0]
        data = (Paths().shards / row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
        assert data.startswith((b"\x89PNG", b"\xff\xd8"))
    assert ask("trace", sha[:12])["manifest"] == found["manifest"]


def test_trace_knows_models_splits_and_copies(place: Path) -> None:
    frame = pd.read_parquet(Paths().curated / "curated.parquet")
    kept = frame[frame["keep"]]
    for split, word in (("train", "this image"), ("test", None)):
        row = kept[kept["split"] == split].iloc[0]
        found = ask("trace", row["path"])
        assert found["curation"][0]["split"] == split
        assert found["verdict"].startswith("held out" if split == "test" else "kept")
        said = {m["trained_on"] for m in found["models"]}
        assert said == ({word} if word else set())
        assert bool(found["test"]) == (split == "test")
    again = ask("trace", "images/flower/again.png")
    assert len(again["paths"]) == 2
    text = CliRunner().invoke(app, ["trace", "images/flower/again.png"]).stdout
    assert "curation" in text


def test_trace_of_rejects_and_strangers(place: Path) -> None:
    found = ask("trace", "images/temple/broken.png")
    assert found["rejects"][0]["reason"] == "empty"
    (place / "stranger.png").write_bytes(b"x")
    for name, words in (
        ("stranger.png", "is in no manifest"),
        ("nowhere.png", "is no file"),
        ("fedcba987654", "fits no image"),
    ):
        with pytest.raises(HeadwaterError, match=words):
            ask("trace", name)


# ---- config and start-up -----------------------------------------------------------------------


def test_config_shows_defaults_and_what_changed(project: Path) -> None:
    found = ask("config", "show")
    assert found["config"] == load().model_dump(mode="json", by_alias=True)
    assert found["changed"]["curate.clusters"] == {"value": 4, "default": 64}
    text = CliRunner().invoke(app, ["config", "show"]).stdout
    assert "  clusters: 4  # changed, default 64" in text
    assert yaml.safe_load(text) == found["config"]
    assert CliRunner().invoke(app, ["config"]).stdout == text


def test_the_schema_accepts_params_and_refuses_what_load_refuses() -> None:
    schema = json.loads(CliRunner().invoke(app, ["config", "schema"]).stdout)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    jsonschema.validate(tree, schema)
    for key, value in (("epoch", 3), ("epochs", "many")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**tree, "pretrain": {**tree["pretrain"], key: value}}, schema)


def test_logins_are_never_printed(project: Path) -> None:
    secret = "data.sources=[https://user:hunter2@host/x]"
    for words in (["config", "show", "-s", secret], ["config", "show", "-s", secret, "--json"]):
        done = CliRunner().invoke(app, words)
        assert "hunter2" not in done.stdout
        assert "https://***@host/x" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["status"], ["config", "show"]])
def test_start_up_imports_no_torch(project: Path, words: list[str]) -> None:
    code = "import sys; from ssl_core.__main__ import app\ntry: app()\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split("\n")[-2].split())
    assert "typer" in loaded
    assert not loaded & {"torch", "timm", "pandas", "dvc", "dagster", "matplotlib", "sklearn"}


def test_every_command_has_help_and_exit_codes(project: Path) -> None:
    names = ("init", "run", "status", "doctor", "trace", "forget", "diff", "export", "serve")
    for name in (*names, "clean"):
        done = CliRunner().invoke(app, [name, "--help"])
        assert f"headwater {name}" in done.output, done.output  # an example
    assert headwater("trace", "nowhere.png", cwd=project, check=False).returncode == 1
    assert headwater("trace", cwd=project, check=False).returncode == 2
