"""Licences of the environment against the allow list, and its bill of materials; no network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("audit", ROOT / "tools/audit.py")
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def test_every_package_here_is_under_a_licence_that_is_allowed() -> None:
    bad, stale = audit.licences()
    assert bad == []
    assert stale == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("GPLv2 | EPLv1", True),
        ("BSD-3-Clause AND BSL-1.0", True),  # Boost
        ("LGPL with exceptions", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Permission is hereby granted, free of charge, to any person " + "x" * 300, True),
        ("", False),
        ("GPL-3.0-only", False),
        ("AGPL-3.0-or-later", False),
        ("GNU Affero General Public License v3", False),
        ("MIT AND AGPL-3.0-only", False),
        ("CC-BY-NC-4.0", False),
        ("Business Source License 1.1", False),
        ("BUSL-1.1", False),
        ("Elastic License 2.0", False),
        ("LicenseRef-Proprietary", False),
        ("GNU AFFERO GENERAL PUBLIC LICENSE Version 3 " + "MIT " * 100, False),
    ],
)
def test_what_is_allowed(text: str, right: bool) -> None:
    assert audit.allowed(text) is right


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    made = audit.sbom(tmp_path / "sbom.json")
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert "timestamp" not in made["metadata"]  # the same packages give the same bytes
    named = {c["name"].lower().replace("_", "-"): c["version"] for c in made["components"]}
    assert made["metadata"]["component"]["name"] == "headwater"
    for name in ("torch", "dagster", "dvc", "timm"):
        assert named[name] == metadata.version(name)
    known = {d["ref"] for d in made["dependencies"]}
    assert {c["bom-ref"] for c in made["components"]} <= known


def test_packages_that_the_index_does_not_know_are_not_taken_for_safe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "sbom", lambda path: {"components": []})
    monkeypatch.setattr(audit, "licences", lambda: ([], []))
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    hole = {"id": "CVE-1", "fix_versions": ["2"]}
    for found, code, said in (
        ([{"name": "a", "skip_reason": "not found"}], 0, "NOT looked for"),
        ([{"name": "a", "version": "1", "vulns": [hole]}], 1, "a 1: CVE-1, mended in 2"),
        ([{"name": "a", "version": "1", "vulns": []}], 0, "0 in 1 packages"),
        (None, 0, "NOT looked for"),
    ):
        out = "" if found is None else json.dumps({"dependencies": found})
        done = subprocess.CompletedProcess([], 1, stdout=out, stderr="no route")
        monkeypatch.setattr(subprocess, "run", lambda *_, _done=done, **__: _done)
        assert audit.main() == code
        assert said in capsys.readouterr().out
