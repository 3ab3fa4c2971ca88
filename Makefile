# Every target sets itself up: `make demo` on a fresh clone works. Needs python >= 3.11 (PYTHON=... to choose one).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RECIPE ?= shapes/unigrpo
# Two processes of one thread each: the tests use at most two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

.PHONY: help demo test check lint bench base

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## train a model that thinks, then draws (minutes on a CPU; RECIPE=... for another recipe)
	@$(BIN)/unigrpo train $(RECIPE)

test: $(READY)  ## the tests (without the slow ones)
	@$(PYTEST)

check: lint test  ## everything that must hold before a commit: lint, format, types, import contracts, tests

lint: $(READY)  ## check without the tests
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "ruff format would change files: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/pyright
	@PYTHONPATH=src $(BIN)/lint-imports --no-cache --no-logo

bench: $(READY)  ## the benchmarks, one after another
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

base: $(READY)  ## make the shipped base checkpoints again, from nothing
	@$(BIN)/python scripts/make_base.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and \
		"unigrpo needs python 3.11 or newer, and $(PYTHON) is " + v + ": run make PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV) (once; torch is large) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
