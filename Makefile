# make demo: the quickest way to see it learn.  make test: lint, types and tests.  make test-all: the slow ones too.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: install demo test test-all lint

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python experiments/demo.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --durations=10

test-all: lint
	$(BIN)/python -m pytest -m "slow or not slow"
