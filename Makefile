# Each target sets up what it needs, in one environment, .venv.
PYTHON ?= python3
BIN := .venv/bin
MARKER := .venv/.installed

.PHONY: help setup demo demo-teacher test test-slow test-faults soak test-real-model check format bench docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: $(MARKER)  ## Make the environment in .venv

$(MARKER): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $(MARKER)

demo: $(MARKER)  ## Distil the embedded task three ways and compare (a minute or two on two cores)
	$(BIN)/tutelage demo

demo-teacher: $(MARKER)  ## Retrain the demo's teacher that ships in the package
	$(BIN)/python -m tutelage.demo.teacher

test: $(MARKER)  ## Run the tests
	$(BIN)/python -m pytest -q -n 2

test-slow: $(MARKER)  ## Run the long tests
	$(BIN)/python -m pytest -q -m slow

test-faults: $(MARKER)  ## Kill, hang, cut, damage and fill up runs, and see that none is lost
	$(BIN)/python -m pytest -q -n 2 tests/faults tests/distributed -m "not fault_soak"

soak: $(MARKER)  ## Kill 300 runs over the families of methods and print what it cost; cut the cable between two hosts (as root)
	$(BIN)/python -m pytest -q -s tests/faults tests/distributed -m fault_soak

test-real-model: $(MARKER)  ## Run the tests that need a pretrained model (TUTELAGE_MODELS names the folder)
	$(BIN)/python -m pytest -q -m real_model

check: $(MARKER)  ## Lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(MARKER)  ## Check that the documentation is true: its code runs, its commands parse, its links resolve
	$(BIN)/python -m pytest -q tests/docs tests/examples

bench: $(MARKER)  ## Run every benchmark in turn, beside its peers (results: benchmarks/RESULTS.md)
	$(BIN)/python benchmarks/divergence.py
	$(BIN)/python benchmarks/divergence.py --dtype bfloat16
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/on_policy_step.py
	$(BIN)/python benchmarks/on_policy_step.py --divergence "jsd(0.5)"
	$(BIN)/python benchmarks/static_data.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/predicted_memory.py

format: $(MARKER)  ## Format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
