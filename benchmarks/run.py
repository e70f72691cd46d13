"""The engine's benchmarks, each in a process of its own, and one table of what they found.

``python -m benchmarks.run [name ...]``; results are in ``benchmarks/results/``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import _common
from ssl_core.artifacts import read_json, write_bytes

# Minutes each on two cores; what takes longer runs by its own name (see README.md).
NAMES = ("data_path", "scaling", "reader", "step", "end_to_end", "memory", "s3")
SHOWN = (*NAMES, "compile")  # of the last there is no peer: ``benchmarks.step --compile``


def summary(found: Sequence[str]) -> str:
    """The tables of all results that there are, as markdown."""
    parts = []
    for name in found:
        path = _common.RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = read_json(path)
        if not {"rows", "title", "unit", "machine", "about"} <= set(result):
            continue
        rows = [_common.Row(**row) for row in result["rows"]]
        where = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
        facts = {k: v for k, v in result["about"].items() if k != "limits"}
        about = "\n".join(f"- {k}: {v}" for k, v in facts.items())
        table = _common.markdown(rows, result["unit"]) + limits(result["about"])
        parts.append(f"## {result['title']}\n\n{table}\n\n{where}\n\n{about}\n")
    return "\n".join(parts)


def limits(about: dict[str, Any]) -> str:
    """What holds each case of the step: its products at the machine's best, and its profile."""
    if "limits" not in about:
        return ""
    head = "| | case | GFLOP | step, s | products alone, s | share | time |\n|-|-|-|-|-|-|-|"
    lines = [head]
    for method, found in about["limits"].items():
        for case, f in found.items():
            time = sorted(f["time"].items(), key=lambda item: -item[1])[:4]
            where = ", ".join(f"{name.strip('_')} {share:.0%}" for name, share in time)
            lines.append(
                f"| {method} | {case} | {f['gflop']} | {f['step_s']} | {f['bound_s']} "
                f"| {f['share_of_bound']:.0%} | {where} |"
            )
    return "\n\n" + "\n".join(lines)


def main(chosen: list[str]) -> int:
    """Run them; the number of those that failed."""
    failed = 0
    for name in chosen or NAMES:
        failed += subprocess.call([sys.executable, "-m", f"benchmarks.{name}"]) != 0
    text = summary(SHOWN)
    write_bytes(_common.RESULTS / "all.md", text.encode())
    print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
