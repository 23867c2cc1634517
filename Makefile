# `make demo` and `make test` each make a virtual environment and do all set-up on a machine with Python ≥ 3.11.
# PYTHON chooses the interpreter, VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Python compiles what is imported; pip would compile all, torch and jax whole, which takes it half of its time.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test fuzz lint bench results docs figures serving clean

demo: $(VENV)/demo.stamp
	$(BIN)/capscore demo

# XLA compiles each program of the tests for one run: its older way to make code of fused operations takes half as long.
test: export XLA_FLAGS += --xla_cpu_use_fusion_emitters=false
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(ARGS)

# Damaged files, so many for each format: minutes, where `make test` takes seconds.
INPUTS ?= 20000
fuzz: $(VENV)/test.stamp
	CAPSCORE_FUZZ=$(INPUTS) $(BIN)/python -m pytest tests/fuzz $(ARGS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An environment with MLServer, which holds back packages that others want new, and runs on Python up to 3.12. Tests take
# the one whose Python CAPSCORE_MLSERVER names.
serving: $(VENV)-serving/stamp

# Results as JSON and plots go to runs/bench; the figures of docs/performance.md are of quiet machines.
bench: $(VENV)/demo.stamp
	$(BIN)/python -m lab bench --scaling --out runs/bench $(ARGS)

# The site, in site/. Warnings are errors: a link that leads nowhere fails (with --quiet it would not).
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What about an hour for each on two cores can show, added to results/ and docs/results.md. It goes on where it was
# stopped.
EXPERIMENTS ?= mnist multimnist affnist claims
results: $(VENV)/demo.stamp
	for name in $(EXPERIMENTS); do $(BIN)/python -m lab experiment $$name --budget hour $(ARGS) || exit; done
	$(BIN)/python -m lab results

# The pictures of the chapters. What the network learned stays in runs/docs; without it a minute of training comes first.
figures: $(VENV)/demo.stamp
	$(BIN)/python docs/figures.py $(ARGS)

# The demo and the tests need torch: the constraints name a build, and its absence would only skip things. The page of
# results takes its intervals from scipy.
$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) torch
	$(INSTALL) --editable '.[torch,onnx,plot]' scipy
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt $(VENV)/demo.stamp
	$(INSTALL) --editable '.[torch,jax,onnx,plot,docs,dev]' tensorboard
	touch $@

$(VENV)-serving/stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-serving
	$(VENV)-serving/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[mlserver]' 'tritonclient[grpc]'
	touch $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[docs]'
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "capscore needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(VENV)-serving demo build site *.egg-info
