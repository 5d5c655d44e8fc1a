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
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

## parity: every strategy x method x checkpointing x padding x accumulation against one plain rank (1,200 trials)
.PHONY: parity
parity: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow tests/train/test_parity_matrix.py

$(VENV)/.worker: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[worker,report]'
	touch $@

$(VENV)/.dev: $(VENV)/.worker
	$(INSTALL) --editable '.[worker,report,serve,axes,quant,edge,tensorrt,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# What a lent H200 machine lacks, or may lack (Python 3.12, no network): benchmarks/h200.sh installs what is missing.
# Not bitsandbytes (125 MB), DeepSpeed (no wheel), flash-attn (no wheel): with the tree, all may weigh 64 MiB.
WHEELS := pydantic pydantic_core annotated-types typing-inspection typing_extensions typer click rich shellingham \
    markdown-it-py mdurl Pygments annotated-doc psutil nvidia-ml-py peft accelerate torchao pytest pytest-timeout iniconfig \
    pluggy packaging
PLATFORMS := $(addprefix --platform ,manylinux_2_28_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 \
    manylinux2014_x86_64 manylinux1_x86_64)
.PHONY: wheels
wheels: $(VENV)/.worker
	rm -rf .whl && mkdir .whl
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	    $(PLATFORMS) -d .whl --constraint constraints.txt $(WHEELS) liger-kernel==0.8.5
	du -sh .whl

## chaos: a campaign of injected faults on a real Slurm and on a scripted one (about 25 minutes)
.PHONY: chaos
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.cluster.chaos --page docs/reliability.md
