# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.

VENV ?= .venv
OUTPUT ?= outputs/demo
# LeRobot's own environment, for `make lerobot`: it needs Python 3.12 and cannot share ours.
LEROBOT ?= .venv-lerobot
LEROBOT_PYTHON ?= python3.12
# The first Python on the path that is new enough and not too new.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# What CI leaves out: `lerobot` needs LeRobot's own environment, `gpu` a CUDA device.
TESTS := not lerobot and not gpu

.DEFAULT_GOAL := help
BENCHMARKED ?= outputs/benchmarks/pusht
TWO_CAMERAS ?= outputs/benchmarks/two_cameras
# Of training steps: what changes the work, in `visuomotor train`'s words.
OPTIONS := --batch-size 16 --noise-draws 4 --consecutive-windows 4

.PHONY: help demo test check lerobot benchmarks docs notebook lint format clean

help:
	@echo "make demo    train a small Push-T policy here, measure it and write a report in $(OUTPUT) (about 12 minutes)"
	@echo "make test    every test that needs neither LeRobot nor a GPU (20 minutes)"
	@echo "make check   the fast tests and the lints (under 3 minutes)"
	@echo "make lerobot the tests that run LeRobot itself; installs it in $(LEROBOT) (Python 3.12, some gigabytes)"
	@echo "make benchmarks DATA=PUSHT.zarr.zip  writing, loading, training and acting, side by side with LeRobot (an hour)"
	@echo "make docs    the documentation as pages, in outputs/site"
	@echo "make notebook  executes notebooks/ anew and keeps what it shows (2 minutes)"
	@echo "make lint    ruff and ty"
	@echo "make format  mend what ruff can mend"
	@echo "make clean   delete $(VENV) and what tools leave behind; outputs stay"

demo: $(VENV)/.demo
	$(BIN)/visuomotor demo --output $(OUTPUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "$(TESTS)"

check: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "$(TESTS) and not slow"

lerobot: $(VENV)/.dev $(LEROBOT)/.installed
	VISUOMOTOR_LEROBOT=$(LEROBOT)/bin/python $(BIN)/python -m pytest -m lerobot

# DATA is the original zarr of Push-T, or any other name of those demonstrations.
benchmarks: $(VENV)/.dev $(LEROBOT)/.installed
	@test -n "$(DATA)" || { echo "error: DATA: expected Push-T's pusht_cchi_v7_replay.zarr.zip, got none;" \
		"say make benchmarks DATA=FILE" >&2; exit 1; }
	test -d $(BENCHMARKED) || $(BIN)/visuomotor convert $(DATA) $(BENCHMARKED)
	$(BIN)/python benchmarks/writing.py $(DATA) --lerobot $(LEROBOT)/bin/python --episodes 60
	$(BIN)/python benchmarks/loading.py $(BENCHMARKED) --lerobot $(LEROBOT)/bin/python
	test -d $(TWO_CAMERAS) || $(BIN)/python benchmarks/two_cameras.py $(TWO_CAMERAS)
	$(BIN)/python benchmarks/loading.py $(TWO_CAMERAS) --lerobot $(LEROBOT)/bin/python --resize 240 320 --batches 3 \
		--rounds 3 --output benchmarks/loading-two-cameras.json
	$(BIN)/python benchmarks/training.py $(BENCHMARKED) --lerobot $(LEROBOT)/bin/python --python $(BIN)/python
	$(BIN)/python benchmarks/training.py $(BENCHMARKED) --lerobot $(LEROBOT)/bin/python --python $(BIN)/python \
		--cases "U-Net 128-256-512" --output benchmarks/training-options.json --ours $(OPTIONS)
	$(BIN)/python benchmarks/latency.py --lerobot $(LEROBOT)/bin/python --threads 2

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebook: $(VENV)/.dev
	$(BIN)/python notebooks/execute.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: Python: expected 3.11, 3.12 or 3.13 on the path, got none;" \
		"install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# opencv-python loads libGL, libX11 and GLib from the system, and gym-pusht asks for no other. Where they are missing, the
# headless build of the same version, which needs nothing, takes its place. Both own the folder cv2, so it is put back whole.
define simulator
	@$(BIN)/python -c "import cv2" 2>/dev/null || { echo "opencv-python does not load here: taking its headless build"; \
		$(BIN)/python -m pip uninstall --yes opencv-python opencv-python-headless && \
		$(INSTALL) --no-deps opencv-python-headless; }
endef

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[pusht,studio]'
	$(simulator)
	@touch $@

$(VENV)/.dev: pyproject.toml client/pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ./client --editable '.[dev,serve]'
	$(simulator)
	@touch $@ $(VENV)/.demo

$(LEROBOT)/.installed:
	$(LEROBOT_PYTHON) -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install --disable-pip-version-check 'lerobot[dataset,diffusion,training]==0.6.1'
	@touch $@
