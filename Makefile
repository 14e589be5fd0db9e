# Every target makes the environment it needs in .venv: a fresh machine needs Python >= 3.10 and a package index, no more.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# one thread a process: two workers share two cores
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env train demo test test-all slow-test gpu-test lint format bench docs clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

env: $(READY)  ## the environment, .venv

# Redone when the requirements change. `typed/patchloom` is where the type checker finds this folder under the package's
# name, whatever the clone is called.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "patchloom needs Python 3.10 or newer: make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,multimodal,demo,docs,dev]'
	mkdir -p .venv/typed && ln -sfn '$(CURDIR)' .venv/typed/patchloom
	touch $(READY)

train: $(READY)  ## train a small transformer on images drawn on the fly and test it, under 4 minutes
	$(BIN)/patchloom fit -c shapes/cct $(ARGS)

demo: $(READY)  ## a page in the browser: every task on your own pictures
	$(BIN)/patchloom demo $(ARGS)

test: $(READY)  ## the default tests, under ten minutes on two cores
	$(PYTEST) -m 'not slow and not gpu' $(ARGS)

test-all: $(READY)  ## the slow ones too
	$(PYTEST) -m 'not gpu' $(ARGS)

slow-test: $(READY)  ## the slow ones alone
	$(PYTEST) -m 'slow and not gpu' $(ARGS)

gpu-test: $(READY)  ## what needs a CUDA device
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

lint: $(READY)  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## speed against timm over the architectures that both have
	$(BIN)/python tests/benchmarks/against_timm.py $(ARGS)

# griffe reads every file below a package, so it is shown the package alone, without tests and environment.
docs: $(READY)  ## the pages in docs/, as a site in build/site; strictly
	mkdir -p build/api/patchloom
	for part in kernels vision multimodal data train configs registry.py __init__.py; do ln -sfn '$(CURDIR)'/$$part build/api/patchloom/$$part; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet $(ARGS)

clean:  ## all that was built, the environment included
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
