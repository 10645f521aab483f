# make demo | make test | make lint: each makes .venv and installs what it needs, once.
# Tests run in two processes; another number: make test WORKERS=4
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVING := $(VENV)/.serving
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test slow lint format clean

demo: $(INSTALLED)  ## the whole way on made-up data, a few minutes on two cores
	$(BIN)/recpress run quickstart --out runs/quickstart

test: $(INSTALLED)
	$(PYTEST)

slow: $(SERVING)
	$(PYTEST) -m "slow and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recpress needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(SERVING): $(INSTALLED)  # a server that only slow tests ask
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,serving]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
