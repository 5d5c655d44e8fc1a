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

# What a lent H200 machine lacks (Python 3.12, no network): see benchmarks/h200.sh
.PHONY: wheels
wheels: $(VENV)/.worker
	mkdir -p .whl && $(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
	    --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl \
	    --constraint constraints.txt pydantic pydantic_core annotated-types typing-inspection

## chaos: a campaign of injected faults on a real Slurm and on a scripted one (about 25 minutes)
.PHONY: chaos
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.cluster.chaos --page docs/reliability.md
