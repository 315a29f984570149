# Everything a person or CI runs. `make help` lists it.
VENV ?= .venv
BIN := $(VENV)/bin
export VENV

# Tests run in three processes, since many wait for servers, and in one where they share a GPU. A
# file's stay together, in the order of tests/conftest.py: pytest-xdist's own leaves the files of one
# long test to the end.
TEST_PROCESSES ?= $(if $(shell command -v nvidia-smi),1,3)
# Many start our own commands, which would be compiled each time without bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup setup-sampler demo comparison best-of-n pictures test coverage test-fast check audit sbom format protos bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Set up .venv (CPU or GPU builds, by looking for a GPU)
	@deploy/setup.sh

setup-sampler: ## The same, and vLLM for the policy sampler
	@deploy/setup.sh --sampler

demo: setup-sampler ## Train a reward model, serve it, ask it, and run PPO against it
	@$(BIN)/python -m deploy.demo $(DEMO_ARGS)

comparison: setup-sampler ## Train by SFT, DPO, ORPO, RFT and PPO from one start, and compare them (40 minutes)
	@$(BIN)/python -m deploy.comparison $(COMPARISON_ARGS)

best-of-n: setup-sampler ## Measure what the best of n answers gain and cost (30 minutes)
	@$(BIN)/python -m deploy.best_of_n $(BEST_OF_N_ARGS)

pictures: setup ## Draw docs/pictures anew, from the runs of demo, comparison and best-of-n, and the playgrounds
	@$(BIN)/python -m deploy.pictures $(PICTURES_ARGS)

test: setup-sampler ## All tests
	@$(PYTEST) --durations=15 $(TEST_ARGS)

coverage: setup-sampler ## All tests, with line coverage (an eighth slower)
	@$(PYTEST) --cov --cov-report=term $(TEST_ARGS)

test-fast: setup ## The tests that take seconds
	@$(PYTEST) -m "not slow" $(TEST_ARGS)

check: setup ## Lint, formatting, types, proto drift, known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy client server trainer
	@PYTHON=$(abspath $(BIN))/python protos/generate.sh --check
	@$(BIN)/python deploy/audit.py

audit: setup ## Known vulnerabilities of the images' dependencies; fails where nothing can be audited
	@$(BIN)/python deploy/audit.py --required

sbom: setup ## A CycloneDX list of each image's Python packages, in dist/sbom
	@mkdir -p dist/sbom
	@for lock in deploy/*/requirements.*.txt; do \
	  name=$$(basename $$(dirname $$lock))-$$(basename $$lock .txt | cut -d. -f2); \
	  $(BIN)/cyclonedx-py requirements $$lock --output-file dist/sbom/$$name.cdx.json || exit 1; \
	  echo dist/sbom/$$name.cdx.json; \
	done

format: setup ## Format the code and sort imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: setup ## Write the stubs of protos/ anew
	@PYTHON=$(abspath $(BIN))/python protos/generate.sh

bench: setup-sampler ## The benchmarks, as ratios from one run
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

clean: ## Remove caches and builds, not the environment
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
