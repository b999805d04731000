# Everything runs in .venv, which the first target builds. A second call installs nothing again:
# each stamp is newer than what it was made from.

PYTHON ?= python3.11
BIN := .venv/bin
TORCH := 2.13.0

.PHONY: demo test test-integrations lint types check docs docs-pictures bench dist newcomer clean

demo: .venv/.demo
	$(BIN)/paceline demo

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# One environment per framework, in .integrations; writes docs/compatibility.md.
test-integrations:
	TORCH=$(TORCH) $(PYTHON) tests/integrations/environments.py

lint: .venv/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.lint
	$(BIN)/mypy

check: lint types test

docs: .venv/.docs
	$(BIN)/mkdocs build --strict

# Runs the demo for 90 s and draws docs/pictures from it; screenshots need a chromium.
docs-pictures: .venv/.demo
	$(BIN)/python benchmarks/docs_pictures.py

bench: .venv/.demo
	$(BIN)/python benchmarks/watch_overhead.py --json
	$(BIN)/python benchmarks/simulator.py --json
	$(BIN)/python benchmarks/demo.py --json

# Builds the sdist, the wheel from it, and tries the wheel in an empty environment.
dist: .venv/.dist
	rm -rf dist
	$(BIN)/python -m build
	PYTHON=$(PYTHON) TORCH=$(TORCH) .ci/try-wheel

# Runs the commands of docs/first-script.md in an empty environment: some five minutes.
newcomer:
	$(PYTHON) .ci/newcomer

# torch comes first and pinned: an open range would pull several gigabytes of CUDA packages.
.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	@touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[torch,report]"
	@touch $@

.venv/.%: .venv/.demo pyproject.toml
	$(BIN)/python -m pip install --quiet --group $*
	@touch $@

.venv/.lint: .venv/.test

clean:
	rm -rf .venv .integrations site dist .mypy_cache .ruff_cache .pytest_cache
