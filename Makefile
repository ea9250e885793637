# make demo      labels a simulated field of view with the small network in checkpoints/
# make test      everything that a change must pass: lint, then the tests
# make lint      ruff (lint and format), mypy and import-linter alone
# make soak      the tests that take minutes
# make bazel-check   everything built by Bazel, the original's commands, a small test of each package
# make bazel-test    all tests of `make test` by Bazel
# make clean     away with all that the above left here
#
# Each first makes .venv, unless it is there and newer than pyproject.toml.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Bazel takes the first Python on PATH, and passes that on.
BAZEL := PATH="$(CURDIR)/$(BIN):$$PATH" bazel

.DEFAULT_GOAL := test
.PHONY: demo test lint soak bazel bazel-test bazel-check clean

demo: $(INSTALLED)
	$(BIN)/isl-launch --base_directory demo --mode EVAL_EVAL --metric INFER_FULL \
	  --stitch_crop_size 1500 --restore_directory checkpoints --read_pngs \
	  --dataset_eval_directory data_sample/synthetic_evaluation \
	  --infer_channel_whitelist DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL

# Two at a time: TensorFlow builds graphs on one core, and steps of small networks leave cores idle.
# In pyproject.toml's order, not by the number of tests: a file of few tests may be the longest.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --follow-imports=silent benchmarks/distributed.py
	$(BIN)/lint-imports

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak

bazel-test: bazel
	$(BAZEL) test //...

bazel-check: bazel
	$(BAZEL) build //...
	$(BIN)/python -m pytest -m bazel
	$(BAZEL) test --test_tag_filters=smoke //...

bazel: $(INSTALLED)
	@command -v bazel > /dev/null || \
	  { echo 'Bazel is missing; on Debian and Ubuntu: apt-get install bazel-bootstrap' >&2; exit 1; }

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo '$(PYTHON) must be Python 3.11 to 3.13; name another: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m ensurepip --version > /dev/null 2>&1 || \
	  { echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Installing TensorFlow and the rest into $(VENV): one to several minutes, the first time only.'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
