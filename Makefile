# make demo: the quickest way to see it learn.  make test: lint, types and tests.  make test-all: the slow ones too.
# make gpu: every claim about a GPU, measured on this machine.
PYTHON ?= python3
BIN := .venv/bin
# Three are no faster on two cores.
TEST_PROCESSES ?= 2
READY := .venv/ready

.PHONY: install demo gpu test test-all lint

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python experiments/demo.py

gpu: $(READY)
	$(BIN)/python experiments/benchmark/gpu.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=10

test-all: lint
	$(BIN)/python -m pytest -m "slow or not slow"
