"""Every command: exit codes 0, 1 and 2, ``--json``, and the completion that shells install."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from typer.main import get_command

from ssl_core import __main__ as entry

# Command -> arguments that leave it something to mend in an empty folder; None: it cannot fail.
BAD = ["-p", "broken.yaml"]
TABLE: dict[str, list[str] | None] = {
    "alert": BAD,
    "analyse": BAD,
    "approve": ["0123456789ab", "why", *BAD],
    "audit": BAD,
    "bench-methods": BAD,
    "clean": BAD,
    "collect": ["key", "2026-01-01", *BAD],
    "config schema": None,
    "config show": BAD,
    "correct": ["nowhere.csv"],
    "curate": BAD,
    "diagnose": ["2026-01-01", *BAD],
    "diff": ["nowhere"],
    "doctor": BAD,
    "embed": BAD,
    "evaluate": BAD,
    "export": ["0123456789ab"],
    "forget": ["nowhere.png"],
    "ingest": BAD,
    "init": ["nowhere"],
    "monitor": ["2026-01-01", *BAD],
    "predict": ["2026-01-01", *BAD],
    "pretrain": BAD,
    "promote": BAD,
    "query": ["SELECT nonsense FROM nowhere"],
    "recommend": BAD,
    "repair": ["2026-01-01", *BAD],
    "report": BAD,
    "request-labels": ["2026-01-01", *BAD],
    "rollback": ["why"],
    "run": BAD,
    "seed-embed": BAD,
    "seeds": BAD,
    "serve": ["--model", "0123456789ab"],
    "shard": BAD,
    "simulate": BAD,
    "status": BAD,
    "study": ["temperature", *BAD],
    "trace": ["nowhere.png"],
    "validate": BAD,
    "version": None,
    "watch": BAD,
}
PLAIN = {"serve", "config schema"}  # one never ends, the other prints JSON in any case


def commands() -> Iterator[str]:
    for name, command in get_command(entry.app).commands.items():
        below = getattr(command, "commands", None)
        yield from [f"{name} {n}" for n in below] if below else [name]


def call(*words: str) -> int:
    """``headwater words`` in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headwater", *words])
        try:
            entry.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("data: [")
    return tmp_path


def test_a_file_that_is_not_there_is_not_taken_for_defaults() -> None:
    assert call("config", "show") == 0
    assert call("config", "show", "-p", "nowhere.yaml") == 1


def test_the_table_is_the_list_of_commands() -> None:
    assert sorted(commands()) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_exit_codes(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    words, wrong = name.split(), TABLE[name]
    assert call(*words, "--help") == 0
    assert ("--json" in capfd.readouterr().out) != (name in PLAIN)
    assert call(*words, "--nonsense") == 2
    assert capfd.readouterr().out == ""
    if wrong is None:
        assert call(*words) == 0
        return
    as_json = [] if name in PLAIN else ["--json"]
    assert call(*words, *wrong, *as_json) == 1
    told = capfd.readouterr()
    if told.out:  # doctor's lines
        assert any(line["level"] == "fail" for line in json.loads(told.out))
    else:
        assert told.err.startswith("headwater: ")
        assert "Fix: " in told.err
        assert "Traceback" not in told.err


def test_the_program_itself() -> None:
    assert call() == 2  # says what there is
    assert call("--help") == 0
    assert call("nonsense") == 2


def test_json_is_all_that_goes_to_stdout(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (empty / "params.yaml").write_text("{}\n")
    small = ["--images", "500", "--classes", "5"]
    for words in (
        ["version"],
        ["config", "show"],
        ["status"],
        ["clean"],
        ["watch"],
        ["alert"],
        ["recommend", *small],
    ):
        assert call(*words, "--json") == 0, words
        json.loads(capfd.readouterr().out)


# ---- completion --------------------------------------------------------------------------------


def in_shell(shell: str, text: str, home: Path, *flags: str) -> str:
    """What a shell prints that finds ``headwater`` on its path, as a user has it."""
    bin_ = home / "bin"
    if not bin_.exists():
        bin_.mkdir()
        script = f"#!{sys.executable}\nfrom ssl_core.__main__ import main\n\nmain()\n"
        (bin_ / "headwater").write_text(script)
        (bin_ / "headwater").chmod(0o755)
    path = os.pathsep.join([str(bin_), "/usr/local/bin", "/usr/bin", "/bin"])
    env = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    words = [shell, *flags, "-c", f"{text}\n:"]  # the colon: else the shell becomes the command
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_shown_and_installed(shell: str, empty: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    shown = in_shell(shell, "headwater --show-completion", empty)
    assert "_headwater_completion" in shown
    in_shell(shell, "headwater --install-completion", empty)
    if shell == "zsh":
        assert in_shell(shell, "print $_comps[headwater]", empty, "-i").strip() == "_headwater"
        asked = "_HEADWATER_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS='headwater pre' headwater"
        said = in_shell(shell, asked, empty)
        assert '"pretrain":"Train the encoder' in said
        assert '"predict":' in said
    else:
        press = "COMP_WORDS=(headwater pre); COMP_CWORD=1; _headwater_completion headwater"
        said = in_shell(shell, f'{press}; echo "${{COMPREPLY[@]}}"', empty, "-i")
        assert set(said.split()) == {"pretrain", "predict"}
