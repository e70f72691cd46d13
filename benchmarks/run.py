"""The engine's benchmarks, each in a process of its own, and one table of what they found.

``python -m benchmarks.run [name ...]``; results are in ``benchmarks/results/``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks import _common
from ssl_core.artifacts import read_json, write_bytes

# Minutes each on two cores; what takes longer runs by its own name (see README.md).
NAMES = ("data_path", "scaling", "reader", "step", "end_to_end", "memory", "s3")


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
        about = "\n".join(f"- {k}: {v}" for k, v in result["about"].items())
        table = _common.markdown(rows, result["unit"])
        parts.append(f"## {result['title']}\n\n{table}\n\n{where}\n\n{about}\n")
    return "\n".join(parts)


def main(chosen: list[str]) -> int:
    """Run them; the number of those that failed."""
    failed = 0
    for name in chosen or NAMES:
        failed += subprocess.call([sys.executable, "-m", f"benchmarks.{name}"]) != 0
    text = summary(NAMES)
    write_bytes(_common.RESULTS / "all.md", text.encode())
    print(text)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
