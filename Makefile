# Two commands: `make compare` and `make test`. Each makes its own environment first.
# Where there is no GPU and your package index serves torch with CUDA, name the CPU builds' index from
# PyTorch's installation page: make compare PIP_EXTRA_INDEX_URL=...
PYTHON ?= python3
BIN := .venv/bin
SYSTEMS ?= igebm ddpm vae dcgan gated-pixelcnn glow  # one of every family, energy models twice; all of them: SYSTEMS=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SYSTEM ?=  # make test SYSTEM=naf: the tests of that one alone
.PHONY: compare test test-slow check setup setup-dev clean

compare: setup
	$(BIN)/fivefold compare $(SYSTEMS) --data digits --budget 30s --out compare-digits

test: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --durations 10 $(addprefix --system=,$(SYSTEM))

test-slow: setup-dev
	$(BIN)/python -m pytest -m slow --durations 10 $(addprefix --system=,$(SYSTEM))

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed
setup-dev: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('fivefold needs Python 3.11 or newer; name one: make PYTHON=python3.12') if sys.version_info < (3, 11) else 0"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
