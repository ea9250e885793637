# make demo      labels a made-up field of view with random weights: what goes in, what comes out
# make test      everything that a change must pass: lint, then the tests
# make lint      ruff (lint and format) and mypy alone
# make soak      the tests that take minutes
# make bazel-test    the tests once more, by Bazel
# make clean     away with all that the above left here
#
# Each first makes .venv, unless it is there and newer than pyproject.toml.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := test
.PHONY: demo test lint soak bazel-test clean

demo: $(INSTALLED)
	@mkdir -p demo
	$(BIN)/python -m isl.random_checkpoint --directory demo/checkpoints 2> demo/tensorflow.log
	$(BIN)/python -m isl.random_field --directory demo/images
	$(BIN)/isl-launch --base_directory demo/output --mode EVAL_EVAL --metric INFER_FULL \
	  --restore_directory demo/checkpoints --read_pngs --dataset_eval_directory demo/images \
	  --infer_channel_whitelist DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak

bazel-test: $(INSTALLED)
	@command -v bazel > /dev/null || \
	  { echo 'Bazel is missing; on Debian and Ubuntu: apt-get install bazel-bootstrap' >&2; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" bazel test //...

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
