# Two commands: `make train` runs the main job, `make test` passes every test.
# `make test-all` tries every combination, too. `make docs` builds pages to browse from the notebooks
# (with FAST=1 it runs none of them). Each makes the environment .venv first, once.
SHELL := bash
PYTHON ?= python3
CONFIG ?= t5_tiny
NAME ?= $(CONFIG)-$(shell date +%Y%m%d-%H%M%S)
PARAMETERS ?=

# the kernel of a notebook is the first `python` of the path: it must be that of the environment
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1
unexport PYTHONHOME

ready := .venv/.ready

.PHONY: train test test-all docs setup
.DELETE_ON_ERROR:

train: $(ready)
	papermill nbs/train.ipynb "papermill_runs/$(NAME).ipynb" -k python3 -p config "$(CONFIG)" $(PARAMETERS)
	@echo "Read papermill_runs/$(NAME).ipynb in Jupyter: .venv/bin/jupyter lab papermill_runs/$(NAME).ipynb"

test: $(ready)
	tests/check.sh

test-all: $(ready)
	WORKBENCH_TESTS=all tests/check.sh

docs: $(ready)
	python -m workbench.lab.docs.site $(if $(FAST),--fast)

setup: $(ready)

$(ready): constraints.txt settings.ini setup.py
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
