"""The guides: every bash and python block runs, every yaml block is valid, every link leads on.

``headwater`` lines run in this process, to import torch once; other lines of bash by bash.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_init import pictures
from typer.testing import CliRunner

from ssl_core.__main__ import app
from ssl_core.config import Config

GUIDES = ROOT / "docs/guides"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
PLUGIN = re.compile(r"# file: ssl_core/(\w+)/(\w+\.py)\n")
ON_PROJECT = ("curation.md", "data_quality.md", "operating.md", "report.md")  # from the tutorial
ALONE = (
    "choosing.md",
    "extending.md",
    "peers.md",
    "production.md",
    "scaling.md",
    "security.md",
    "ui.md",
    "year.md",
)
KINDS = {"bash", "python", "yaml", "text"}


def blocks(guide: str) -> list[tuple[str, str]]:
    return BLOCK.findall((GUIDES / guide).read_text())


def bash(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["headwater"]:
            done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert done.exit_code == 0, f"{line}\n{done.output}"
        elif words:
            subprocess.run(["bash", "-euc", line], check=True, capture_output=True)


def python(text: str, names: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block; one that names a plug-in's file is put where plug-ins are found."""
    plugin = PLUGIN.match(text)
    if plugin is None:
        exec(compile(text, "<guide>", "exec"), names)
        return
    kind, file = plugin.groups()
    Path(kind).mkdir()
    (Path(kind) / file).write_text(text)
    package = importlib.import_module(f"ssl_core.{kind}")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(Path(kind).absolute())])


def follow(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a guide's blocks in order in the working directory."""
    names: dict[str, object] = {"__name__": "guide"}
    for kind, text in blocks(guide):
        if kind == "bash":
            bash(text)
        elif kind == "python":
            python(text, names, monkeypatch)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project that the tutorial makes."""
    folder = tmp_path_factory.mktemp("tutorial")
    pictures(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        follow("tutorial.md", patch)
    return folder


def test_the_tutorial_leads_to_a_report_and_an_encoder(tutorial: Path) -> None:
    assert (tutorial / "reports/report.html").stat().st_size > 10_000
    assert (tutorial / "data/products/pretrain/encoder.safetensors").exists()


@pytest.mark.parametrize("guide", ON_PROJECT)
def test_these_guides_go_on_from_the_tutorial(
    guide: str, tutorial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tutorial, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    follow(guide, monkeypatch)


@pytest.mark.parametrize("guide", ALONE)
def test_the_other_guides_stand_alone(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    follow(guide, monkeypatch)


def test_every_guide_is_run() -> None:
    mine = {"tutorial.md", *ON_PROJECT, *ALONE}
    assert {g.name for g in GUIDES.glob("*.md")} == mine
    found = [kind for guide in mine for kind, _ in blocks(guide)]
    assert set(found) == KINDS
    fences = sum((GUIDES / guide).read_text().count("```") for guide in mine)
    assert fences == 2 * len(found)  # none escaped the pattern


@pytest.mark.parametrize("guide", sorted(g.name for g in GUIDES.glob("*.md")))
def test_yaml_blocks_are_valid_settings(guide: str) -> None:
    for kind, text in blocks(guide):
        if kind == "yaml":
            Config.model_validate(yaml.safe_load(text))


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    text = BLOCK.sub("", page.read_text())
    found = []
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, part = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (part and part not in {anchor(h) for h in headings(target)}):
            found.append(link)
    return found


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)


def test_relative_links_lead_somewhere(tmp_path: Path) -> None:
    found = pages()
    assert len(found) > 8
    assert {p.relative_to(ROOT).as_posix(): b for p in found if (b := broken(p))} == {}
    (tmp_path / "x.md").write_text("# A b\n[here](#a-b) [no](#c) [gone](y.md) [far](http://x)\n")
    assert broken(tmp_path / "x.md") == ["#c", "y.md"]


def test_files_that_the_guides_name_exist() -> None:
    for guide in GUIDES.glob("*.md"):
        for name in re.findall(r"`((?:tests|ssl_core|docs)/[\w/*.]+)`", guide.read_text()):
            found = list(ROOT.glob(name.replace("NAME", "*")))
            assert found, f"{guide.name}: {name}"
