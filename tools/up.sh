#!/usr/bin/env bash
# `make up` and `make down`: with Docker where its daemon runs, else on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
compose=(docker compose -f pipelines/deploy/compose.yaml)

with_docker() {
  [ ! -e .service/state.json ] && docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1
}

case "${1:-}" in
  up)
    if ! with_docker; then exec python -m pipelines.up start; fi
    env=pipelines/deploy/.env
    if [ ! -e "$env" ]; then
      secret=$(python -c 'import secrets; print(secrets.token_urlsafe(24))')
      (umask 077 && sed "s/^DAGSTER_PG_PASSWORD=.*/DAGSTER_PG_PASSWORD=$secret/" pipelines/deploy/env.example >"$env")
    fi
    HEADWATER_UID=$(id -u) "${compose[@]}" up --build --detach --wait
    echo "http://127.0.0.1:${HEADWATER_PORT:-3000}   logs: ${compose[*]} logs   stop: make down"
    ;;
  down)
    if with_docker; then "${compose[@]}" down; else exec python -m pipelines.up stop; fi
    ;;
  *) echo "usage: tools/up.sh up|down" >&2; exit 2 ;;
esac
