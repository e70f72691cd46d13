"""One project whose whole chain has run, made once, for tests of commands about it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import fill
from typer.testing import CliRunner

from ssl_core import registry
from ssl_core.__main__ import CHAIN, app
from ssl_core.config import Config, Paths, load
from ssl_core.stages import predict

DAY = "2026-03-01"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose chain has run, with one day of deployment."""
    return build(tmp_path_factory.getbasetemp() / "whole")


@functools.cache
def build(root: Path) -> Path:
    """Run the chain once in this process of pytest."""
    fill(root)
    (root / "images/temple/broken.png").write_bytes(b"")
    shutil.copy(min((root / "images/flower").iterdir()), root / "images/flower/again.png")
    with contextlib.chdir(root):
        cfg, paths = load(), Paths()
        for name in CHAIN:
            importlib.import_module(f"ssl_core.stages.{name}").run(cfg, paths)
        day = root / cfg.deploy.incoming / DAY
        day.mkdir(parents=True)
        for file in sorted((root / "images/temple").glob("[0-9]*.png"))[:3]:
            shutil.copy(file, day)
        if registry.champion(paths.registry) is None:  # so few steps need not beat random init
            registry.promote(paths.registry, enter(cfg, paths), {"reason": "for the test"})
        predict.run(cfg, paths, DAY)
    return root


def enter(cfg: Config, paths: Paths) -> str:
    """The model that the chain made, in the registry."""
    from ssl_core.stages import _entry

    return _entry.enter(cfg, paths, {"candidate": 0.5, "n": 10}, "for a test")


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil, with the same file times; it is the cwd."""
    root = tmp_path / "project"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return root


def ask(*args: str) -> Any:
    """A command's JSON."""
    done = CliRunner().invoke(app, [*args, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)
