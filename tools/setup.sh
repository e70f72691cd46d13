#!/usr/bin/env bash
# Build .venv from the hashed lock. Finds or fetches uv; never needs root, a GPU or an account.
set -euo pipefail
cd "$(dirname "$0")/.."

fetch_uv() {
  command -v uv >/dev/null && return
  echo "uv not found: fetching it" >&2
  python3 -m pip install --quiet --target .uv uv 2>/dev/null ||
    { python3 -m venv .uv-venv && .uv-venv/bin/pip install --quiet uv; } 2>/dev/null ||
    { curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$PWD/.uv/bin" sh; } ||
    { echo "no pip, venv or curl here: apt-get install python3-pip (or curl)" >&2; exit 1; }
  export PATH="$PWD/.uv/bin:$PWD/.uv-venv/bin:$PATH"
}

fetch_uv
uv venv --quiet --allow-existing --python '>=3.11,<3.14' .venv
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would do it again (15 s).
uv pip install --quiet --python .venv --compile-bytecode --require-hashes -r requirements.lock
uv pip install --quiet --python .venv --no-deps --no-build-isolation -e .
echo "environment ready: $(.venv/bin/python --version), $(du -sh .venv | cut -f1)"
