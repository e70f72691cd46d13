"""Imports go down only, siblings do not import each other, and the core knows no orchestrator."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "ssl_core"
LAYERS = [
    {"alarm", "errors", "types", "bands"},
    {"config", "plugins", "artifacts", "lock", "dist", "parallel", "progress", "s3"},
    {"images", "models", "heads", "stems", "augment", "shards", "losses", "packed"}
    | {"decoding", "engine", "forgotten", "rejects", "store", "telemetry"},
    {"reader", "upload"},
    {"sources", "methods", "evaluate", "drift", "harm", "curation", "report", "validation"},
    {"alerts", "audit", "checkpoints", "density", "gate", "guard", "registry", "sam", "synth"},
    {"accumulation", "checkpoint_writer", "compilation", "distribute", "optim", "preemption"},
    {"job"},
    {"feed"},
    {"step"},
    {"train"},
    {"launch"},
    {"embed", "finetune"},
    {"repair", "analyse"},
    {"stages"},
    {"studies"},
    {"export", "serve"},
    {"commands"},
    {"__main__"},
]
# Named exceptions, each with its reason.
ALLOWED = {
    ("models", "heads"): "heads are parts of models",
    ("models", "packed"): "how blocks of models run",
    ("heads", "packed"): "a decoder is made of such blocks",
    ("models", "stems"): "stems are parts of models",
}
FILES = sorted(p for p in CORE.rglob("*.py") if p != CORE / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if name in names]
    assert found, f"ssl_core.{name} has no layer: add it to LAYERS in {__file__}"
    return found[0]


def imports(path: Path) -> list[str]:
    """Dotted name of every import; relative ones are spelled from ssl_core."""
    found = []
    depth = len(path.relative_to(CORE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module or "")
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            base = f"ssl_core.{node.module}" if node.module else "ssl_core"
            found += [f"{base}.{a.name}" if not node.module else base for a in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CORE).as_posix())
def test_imports_go_down(path: Path) -> None:
    mine = unit(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "ssl_core" or len(parts) < 2 or parts[1] in (mine, "__version__"):
            continue
        if (mine, parts[1]) in ALLOWED:
            continue
        assert layer(parts[1]) < layer(mine), f"{path.name}: {mine} must not import {parts[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CORE).as_posix())
def test_core_knows_no_orchestrator(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"dagster", "dagster_pipes", "dvc", "assets", "pipelines"}


def test_every_folder_named_on_the_card_exists() -> None:
    for name in ("pipelines", "assets", "ssl_core", "data", "tests"):
        assert (ROOT / name).is_dir()
    for name in ("dvc.yaml", "pyproject.toml", "params.yaml", "requirements.lock"):
        assert (ROOT / name).is_file()


def test_lock_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > 1000
