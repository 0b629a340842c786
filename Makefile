# One entry point for people and for CI. `make` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python 3.11 that runs; another one: make PYTHON=/path/to/python3.11
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
OUTPUT ?= demo-corpus
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install --no-deps
# A Ray cluster listens on every interface: tests run with only the loopback one, where the system allows it.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} infra/loopback.sh \
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

.PHONY: help install install-dev demo test test-slow lint audit reference format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: .venv/.installed  ## .venv with the exact versions of requirements/cpu.lock

install-dev: .venv/.installed-dev  ## install, and what the tests and checks need

demo: install  ## curate about 650 documents that packages ship; OUTPUT=demo-corpus
	@$(BIN)/winnow demo --output "$(OUTPUT)"

test: install-dev lint  ## checks and the fast tests
	@$(PYTEST) -m "not slow"

test-slow: install-dev  ## the slow tests
	@$(PYTEST) -m slow

lint: install-dev  ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

audit: install-dev  ## known vulnerabilities of the pinned packages, where a service can be asked
	@$(BIN)/python requirements/audit.py

reference: install-dev  ## make the pages of docs/reference from the code
	@PYTHONPATH=. $(BIN)/python docs/reference/make.py

format: install-dev  ## let ruff mend and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and the caches; a demo's output stays
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: requirements/cpu.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "winnow needs Python 3.11: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@"$(PYTHON)" -m venv .venv >/dev/null || { echo "$(PYTHON) cannot make .venv: on Debian install python3-venv"; exit 1; } >&2
	@echo "Installing the exact versions of requirements/cpu.lock into .venv (0.9 GB to download, 3.3 GB on disk)"
	@$(PIP) -r requirements/cpu.lock
	@$(PIP) --no-build-isolation -e .
	@$(BIN)/python -c 'import torch' 2>/dev/null || { $(BIN)/python -m pip -qq uninstall -y torch; \
		echo "torch is no CPU build: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (README.md, Install) and run this again"; \
		exit 1; } >&2
	@touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.lock
	@$(PIP) -r requirements/dev.lock
	@touch $@
