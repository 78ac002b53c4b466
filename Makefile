# Every target sets up .venv first, once, and again when a file that decides what is in it changes.
# PYTHON makes the virtual environment where there is none: `make test PYTHON=python3.12`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.up-to-date

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-gpu torture bench lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## make .venv with everything that the other targets need

# PyTorch built for GPUs installs its own Triton; only otherwise is the pinned one installed.
# Where nvcc is found the last line builds the CUDA kernels, and its warnings are errors here.
$(STAMP): requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'The development tools need Python 3.11 or newer: rm -r .venv; make PYTHON=python3.11' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements-dev.txt)"
	$(BIN)/python -m pip show --quiet triton || \
		$(BIN)/python -m pip install --quiet "$$(grep '^triton==' requirements-dev.txt)"
	grep -v '^triton==' requirements-dev.txt | $(BIN)/python -m pip install --quiet --requirement /dev/stdin
	NVCC_APPEND_FLAGS='-Werror=all-warnings -Xcompiler=-Werror' \
		$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: $(STAMP)  ## train on a small data set and show what the losses do
	$(BIN)/mibfast demo

test: $(STAMP)  ## run the tests and the examples in docstrings
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(STAMP)  ## run the tests of arithmetic, without Triton, training and processes: two minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow' -k 'not triton' \
		tests/kernels tests/ops tests/losses tests/models tests/data

test-gpu: $(STAMP)  ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

torture: $(STAMP)  ## try to break the package, for an hour or two; `TORTURE="kernels --seed 1"` chooses
	PYTHONPATH=.:tests $(BIN)/python -m torture $(TORTURE)

bench: $(STAMP)  ## measure against the peers and the floors
	$(BIN)/mibfast bench

lint: $(STAMP)  ## check style, types and the direction of imports
	.ci/lint

format: $(STAMP)  ## bring the files into the style that `lint` checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist mibfast.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find benches kernels mibfast tests -name __pycache__ -type d -prune -exec rm -rf {} +
