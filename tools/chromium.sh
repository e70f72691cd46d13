#!/usr/bin/env bash
# Tests open the report and the Dagster UI in a real browser. Install Chromium where we may; else say so.
set -u
command -v chromium chromium-browser google-chrome >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1
fi
command -v chromium >/dev/null || echo "no Chromium: the browser tests will be skipped" >&2
exit 0
