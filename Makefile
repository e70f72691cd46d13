# Two commands: `make demo` and `make test`. Each does all set-up by itself.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(HOME)/.local/bin:$(PATH)
export DAGSTER_HOME := $(CURDIR)/.dagster_home
export GX_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: setup demo test lint audit ui up down lock clean

setup: $(VENV)/.ready ## build .venv from the hashed lock

$(VENV)/.ready: requirements.lock pyproject.toml
	@bash tools/setup.sh
	@touch $@

demo: setup ## raw images -> champion -> drift -> retraining, with a report
	python -m pipelines.demo

test: setup lint ## lint, type check and all tests
	@bash tools/chromium.sh
	OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: setup
	ruff check .
	ruff format --check .
	mypy

audit: setup ## bill of materials, licences, and known holes where the index tells
	python tools/audit.py

ui: setup ## the Dagster UI on http://127.0.0.1:3000
	python -m pipelines.home
	dagster dev

up: setup ## webserver, daemon, Postgres: with Docker, or without where there is none
	@bash tools/up.sh up

down: ## stop them; nothing is lost
	@bash tools/up.sh down

lock: ## resolve again (needs uv)
	uv pip compile --universal --python-version 3.11 --extra dev --extra s3 --generate-hashes \
	  --no-emit-index-url --no-header --upgrade -q pyproject.toml -o requirements.lock

clean: ## delete products of the demo, keep the environment
	rm -rf data/raw data/deploy data/truth data/products data/registry data/history runs reports .dagster_home
