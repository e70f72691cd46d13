"""DAGSTER_HOME inside the project: telemetry off, one job per pool at a time.

python -m pipelines.home
"""

from __future__ import annotations

import os
from pathlib import Path

from assets._dvc import ROOT
from ssl_core.artifacts import write_bytes

SETTINGS = b"""\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    granularity: op
    default_limit: 1
  runs:
    max_concurrent_runs: 4
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  max_resume_run_attempts: 0
"""


def prepare() -> Path:
    """Create the folder with dagster.yaml if need be, and point DAGSTER_HOME at it."""
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(ROOT / ".dagster_home")))
    if not (home / "dagster.yaml").exists():
        write_bytes(home / "dagster.yaml", SETTINGS)
    return home


if __name__ == "__main__":
    print(prepare())
