"""Commands that compare and look after a project: diff, doctor, clean."""

# ruff: noqa: F811 (fixtures by name)
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner
from whole_project import DAY, ask, made, place  # noqa: F401 (fixtures)

from ssl_core import registry
from ssl_core.__main__ import app
from ssl_core.artifacts import read_json, write_json
from ssl_core.commands import _dvc, _packages, _state, clean, doctor
from ssl_core.config import Config, Paths, load
from ssl_core.errors import HeadwaterError

# ---- diff --------------------------------------------------------------------------------------


def test_diff_of_two_projects_and_its_page(place: Path, made: Path) -> None:
    same = ask("diff", str(made), ".")
    assert same["params"] == same["counts"] == same["metrics"] == {}
    assert same["predictions"]["same"] == same["predictions"]["images"]
    file = Paths().evaluation / "metrics.json"
    metrics = read_json(file)
    metrics["pretrained"]["knn"] += 0.25
    write_json(file, metrics)
    told = Paths().evaluation / "test_predictions.parquet"
    frame = pd.read_parquet(told)
    frame.loc[0, "prediction"], frame.loc[0, "correct"] = "other", not frame.loc[0, "correct"]
    frame.to_parquet(told)
    found = ask("diff", str(made), ".", "--html", "diff.html")
    assert found["metrics"]["pretrained.knn"]["change"] == pytest.approx(0.25)
    assert found["predictions"]["mended"] + found["predictions"]["spoilt"] == 1
    page = (place / "diff.html").read_text()
    assert page.count("<figure>") == 1
    assert page.count("data:image/") == 2  # the loss curves and the picture
    assert "http" not in page.replace("http-equiv", "")


def test_diff_of_git_revisions_reads_the_cache(place: Path) -> None:
    """Products of an old commit from DVC's cache, as DVC lays it out; no checkout."""
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True, timeout=60)
    words = [sys.executable, "-m", "dvc", "add", "-q", "data/products/manifest"]
    subprocess.run(words, check=True, timeout=60)
    md5 = yaml.safe_load((place / "data/products/manifest.dvc").read_text())["outs"][0]["md5"]
    outs = [{"path": "data/products/manifest", "md5": md5}]
    (place / "dvc.lock").write_text(yaml.safe_dump({"stages": {"ingest": {"outs": outs}}}))
    subprocess.run([*git, "add", "params.yaml", "dvc.lock"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    params = place / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 4", "epochs: 9"))
    found = ask("diff", "HEAD")
    assert found["a"]["kind"].startswith("commit ")
    assert found["params"]["pretrain.epochs"] == {"a": 4, "b": 9, "change": 5}
    assert found["images"]["only_a"] == found["images"]["only_b"] == 0
    assert found["images"]["both"] > 90


def test_diff_of_a_model_and_of_nonsense(place: Path) -> None:
    found = ask("diff", "champion", "data/products/pretrain")
    assert found["a"]["kind"] == "model"
    assert found["b"]["kind"] == "product"
    with pytest.raises(HeadwaterError, match="is no project, product, model"):
        ask("diff", "--", "-x")


# ---- doctor and clean --------------------------------------------------------------------------


def levels(name: str) -> list[str]:
    return [x["level"] for x in ask("doctor") if x["name"] == name]


def test_doctor_of_a_healthy_project(place: Path) -> None:
    done = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "0 failed" in done.output
    for words in ("cores", "match their checksums", "champion", "packages, "):
        assert words in done.output


def test_doctor_finds_damage_and_names_the_repair(place: Path) -> None:
    paths = Paths()
    shard = next(paths.shards.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    name = registry.champion(paths.registry)
    (paths.registry / "models" / str(name) / "encoder.safetensors").write_bytes(b"")
    (place / "params.yaml").write_text("pretrain: {epoch: 3}\n")
    done = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 1
    found = {x["name"]: x for x in ask("doctor") if x["level"] == "fail"}
    assert set(found) == {"config", "products", "shards", "registry"}
    assert all(line["repair"] for line in found.values())
    assert "did you mean 'epochs'" in found["config"]["repair"]


def test_doctor_and_s3_remotes_and_locks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "topsecret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (place / ".dvc/tmp").mkdir(parents=True)
    (place / ".dvc/config").write_text("['remote \"far\"']\n    url = s3://bucket/x\n")
    held = {"data": {"write": {"pid": 2**22 + 1, "cmd": "dvc repro"}}}
    (place / ".dvc/tmp/rwlock").write_text(json.dumps(held))
    cfg = load(overrides={"data.sources": ["s3://bucket/x"]})
    lines = doctor.examine(cfg, Paths())
    bad = {x.name: x for x in lines if x.level == "fail"}
    assert "S3 does not answer" in bad["source"].text
    assert "S3 does not answer" in bad["dvc"].text
    (lock,) = _dvc.locks(place / ".dvc")
    assert lock.repair == "rm " + str(place / ".dvc/tmp/rwlock")
    assert "topsecret" not in doctor.text(lines)


def test_licences_are_those_that_packages_state(monkeypatch: pytest.MonkeyPatch) -> None:
    names = _packages.closure("headwater")
    assert {"torch", "timm", "numpy", "dvc"} <= names
    assert "pytest" not in names  # of the extra dev only
    assert "BSD" in _packages.licence("numpy")
    monkeypatch.setattr(
        _packages, "licence", lambda name: "AGPL-3.0-only" if name == "dvc" else "MIT"
    )
    found = list(_packages.licences(Config(), Paths()))
    assert next((x.level, "AGPL" in x.text) for x in found) == ("warn", True)


def test_clean_keeps_what_a_rollback_needs(place: Path) -> None:
    paths = Paths()
    source = paths.registry / "models" / str(registry.champion(paths.registry))
    card = read_json(source / "card.json")
    ids = [registry.champion(paths.registry)]
    for i in range(4):
        files = {name: source / name for name in card["files"]}
        head = read_json(source / "head.json") | {"about": i}
        write_json(place / f"head{i}.json", head)
        name = registry.add(
            paths.registry, files | {"head.json": place / f"head{i}.json"}, {"n": i}
        )
        registry.promote(paths.registry, name, {"reason": str(i)})
        ids.append(name)
    gone = {i.path.name for i in clean.retired(paths, days=-1, keep=2)}
    assert gone == set(ids[:3])
    assert clean.retired(paths, days=1, keep=2) == []
    before = set(ask("clean")["items"] and [i["path"] for i in ask("clean")["items"]])
    assert not any("models" in path for path in before)  # only when asked for
    ask("clean", "--models", "0", "--keep-models", "2", "--yes")
    assert registry.rollback(paths.registry, "test") == ids[3]


def test_clean_drops_old_caches_and_not_the_training_it_would_continue(place: Path) -> None:
    from ssl_core.stages import pretrain

    paths, cfg = Paths(), load()
    current = pretrain.work_folder(cfg, paths)
    for folder in (current, current.with_name("ffffffffffff")):
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("{}\n")
        for path in (folder / "log.jsonl", folder):
            os.utime(path, (1e9, 1e9))
    found = {i.path.name: i.kind for i in clean.find(cfg, paths, days=7)}
    assert found == {"ffffffffffff": "run"}
    for file in paths.runs.glob("*.parquet"):
        os.utime(file, (1e9, 1e9))
    caches = [i.path.name for i in clean.find(cfg, paths, days=7) if i.kind == "cache"]
    assert [name.partition("-")[0] for name in sorted(caches)] == ["image", "ingest"]


def test_clean_refuses_while_a_stage_is_at_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "workers", lambda _: [{"pid": 1, "stage": "pretrain"}])
    with pytest.raises(HeadwaterError, match="is at work"):
        ask("clean", "--yes")


def test_a_stage_at_work_is_seen(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(30)", "-m", "ssl_core", "pretrain"]
    with subprocess.Popen(words, cwd=tmp_path) as process:
        try:
            for _ in range(100):
                if found := _state.workers(Paths(tmp_path)):
                    break
                time.sleep(0.05)
            assert found == [{"pid": process.pid, "stage": "pretrain"}]
        finally:
            process.kill()
    assert _state.workers(Paths(tmp_path)) == []
