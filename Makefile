# Every target sets itself up: `make demo` on a fresh clone works. Needs python >= 3.11 (PYTHON=... to choose one).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RECIPE ?= shapes/unigrpo
# Three processes of one thread each: on two cores a fifth of the time of two of them is waiting for others.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 3
# Other orders of the same sums: what rounds differently and must not fail (tests/tolerances.py).
SETTINGS := MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 OMP_NUM_THREADS=2

.PHONY: help demo test test-settings check lint bench base

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## train a model that thinks, then draws (minutes on a CPU; RECIPE=... for another recipe)
	@$(BIN)/unigrpo train $(RECIPE) --nproc 0

test: $(READY)  ## the tests (without the slow ones)
	@$(PYTEST)

test-settings: $(READY)  ## the tests in five settings of the machine, one after another
	@failed=""; for setting in $(SETTINGS); do \
		workers=2; [ $$setting != OMP_NUM_THREADS=2 ] || workers=1; \
		if output=$$(env OMP_NUM_THREADS=1 $$setting $(BIN)/pytest -q -n $$workers 2>&1); then verdict=passed; \
		else verdict=FAILED; failed="$$failed $$setting"; echo "$$output"; fi; \
		echo "$$setting: $$verdict: $$(tail -n 1 <<< "$$output")"; \
	done; [ -z "$$failed" ] || { echo "failed in:$$failed"; exit 1; }

check: lint test  ## everything that must hold before a commit: lint, format, types, import contracts, tests

lint: $(READY)  ## check without the tests
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "ruff format would change files: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/pyright
	@PYTHONPATH=src $(BIN)/lint-imports --no-cache --no-logo

bench: $(READY)  ## the benchmarks, as a table (QUICK=1: in small; AGAINST=REV: beside a revision; OUT=FILE: as JSON)
	@$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(if $(AGAINST),--against $(AGAINST)) $(if $(OUT),--out $(OUT))

base: $(READY)  ## make the shipped base checkpoints again, from nothing
	@$(BIN)/python scripts/make_base.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and \
		"unigrpo needs python 3.11 or newer, and $(PYTHON) is " + v + ": run make PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV) (once; torch is large) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
