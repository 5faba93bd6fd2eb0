# Two commands: `make train` runs the main job, `make test` proves everything in 15 minutes on two cores.
# `make test-all` tries every combination, `make docs` builds pages to browse (FAST=1: nothing runs).
# Each sets up .venv first, once.
SHELL := bash
PYTHON ?= python3
CONFIG ?= t5_tiny
NAME ?= $(CONFIG)-$(shell date +%Y%m%d-%H%M%S)
PARAMETERS ?=

# the kernel of a notebook is called `python`: the environment's must be the first that is found
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
