# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check clean
.DEFAULT_GOAL := quickstart

## quickstart: set up, run a real small sweep on the CPU, write its report
quickstart: $(VENV)/.worker
	$(BIN)/egobench sweep benchmarks/quickstart.yaml
	$(BIN)/egobench report quickstart

## test: set up, lint, type-check, test
test: $(VENV)/.dev
	$(BIN)/ruff check egobench tests benchmarks
	$(BIN)/ruff format --check egobench tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

$(VENV)/.worker: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[worker,report]'
	touch $@

$(VENV)/.dev: $(VENV)/.worker
	$(INSTALL) --editable '.[worker,report,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
